# SPDX-License-Identifier: Apache-2.0
"""The labelling stage: show answers side by side until everything is decided or stopped."""

import os
import signal
import threading
from typing import Any

from llm import files
from llm.core import config as configs
from llm.core import lock
from llm.errors import ConfigError
from llm.label import server, tasks
from llm.label.ledger import Ledger


def run(config: Any, workdir: str) -> None:
    """Serve the labelling page until Ctrl-C or SIGTERM.

    Args:
        config: `path` (JSONL of answers; "" goes on with those of the workdir), `seed` (of the
            orders), `per_task` (annotators that each task needs; 0: everybody sees all), `host`
            and `port` (0: a free one).
        workdir: holds tasks.jsonl and labels.jsonl (the log); receives preferences.jsonl,
            summary.json and, while the page is served, label.json {"url", "pid"}.

    Raises:
        ConfigError: no tasks, a wrong setting, or an address in use.
        StorageError: another process labels in this workdir.
    """
    if config.per_task < 0:
        raise ConfigError(f"config.per_task={config.per_task}.", "Give 0 (everybody) or more.")
    with lock.hold(workdir):
        known = tasks.keep(workdir, tasks.read(config.path) if config.path else [])
        if not known:
            raise ConfigError(
                "There is nothing to label.", "Give --config.path=<JSONL of prompt and answers>."
            )
        ledger = Ledger(workdir, known, int(config.seed))
        ledger.export()
        files.write_json(f"{workdir}/config.json", configs.to_dict(config))
        service = server.Service(ledger, int(config.per_task))
        _serve(server.make(service, config.host, int(config.port)), workdir, config.host)
        count = ledger.export()
        print(describe(ledger.summary(), count, workdir))


def _serve(web: Any, workdir: str, host: str) -> None:
    port = web.server_address[1]
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}/"
    if host not in server.LOOPBACK:
        print(f"warning: {host} can be reached by others; anyone who opens the page can label.")
    print(f"label at {url}  (Ctrl-C ends)", flush=True)
    place = files.path(workdir) / "label.json"
    files.write_json(place, {"url": url, "pid": os.getpid()})
    ended = threading.Event()
    before = {s: signal.signal(s, lambda *_: ended.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    server.start(web)
    try:
        while not ended.wait(0.5):  # a wait without end would not see signals on all systems
            pass
    finally:
        web.shutdown()
        web.server_close()
        place.unlink(missing_ok=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(summary: dict[str, Any], count: int, workdir: str) -> str:
    """Say what was labelled, and how far annotators agree."""
    lines = [f"{count} preference pairs in {workdir}/preferences.jsonl"]
    for name, one in summary["annotators"].items():
        first = one["first_place_wins"]
        share = "" if first is None else f", first place wins {first:.0%}"
        lines.append(f"  {name}: {one['labels']} labels, {one['median_seconds']:.1f} s each{share}")
    found = summary["agreement"]
    if found["items"]:
        kappas = "; ".join(
            f"{' and '.join(pair['judges'])} {_kappa(pair['cohen'])}" for pair in found["pairs"]
        )
        lines.append(
            f"  agreement on {found['items']} pairs: {found['agreement']:.0%}, "
            f"Fleiss' kappa {_kappa(found['fleiss'])} (Cohen's: {kappas})"
        )
    return "\n".join(lines)


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"

# SPDX-License-Identifier: Apache-2.0
"""The eval stage: run the tasks of a config on a model and write their results."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from llm import files
from llm.core import config as configs
from llm.errors import ConfigError
from llm.eval import results
from llm.generate.language_model import load

# Task kind -> its function (language model, **task section) -> {"n", "metrics", "items"?}.
KINDS = {
    "perplexity": "llm.eval.perplexity:evaluate",
    "multiple_choice": "llm.eval.multiple_choice:evaluate",
    "published": "llm.eval.published:evaluate",
    "which_function": "llm.eval.multiple_choice:evaluate_functions",
    "exact_match": "llm.eval.exact_match:evaluate",
    "samples": "llm.eval.samples:evaluate",
    "refusals": "llm.eval.refusals:evaluate",
    "win_rate": "llm.eval.win_rate:evaluate",
    "kneser_ney": "llm.eval.baseline:evaluate",
    "annotate": "llm.eval.annotate:evaluate",
}


class Task(NamedTuple):
    """What to measure, and on which model."""

    kind: str
    model: str
    section: dict[str, Any]


def run(config: Any, workdir: str) -> list[dict[str, Any]]:
    """Evaluate a model.

    Args:
        config: `model` (what `llm.load` takes), `dtype`, `tasks` {name: {"kind", ...}} and
            `report` (see `report_options`). A task with a `model` of its own is run on that one.
        workdir: receives results/<task>.json, results.json and config.json. A task that was
            already run with the same settings on the same model and data is not run again.

    Returns:
        The results of all tasks, in the config's order.

    Raises:
        ConfigError: an unknown kind, a wrong option, or no task at all.
    """
    tasks = check(config)
    options = report_options(**configs.bind(report_options, config.report, "report"))
    settings = configs.to_dict(config)
    done = results.known_tasks(workdir)
    loaded: dict[str, Any] = {}
    found = []
    for name, task in tasks.items():
        inputs = [fingerprint(place) for place in _inputs(task)]
        key = files.hash_json([task, config.dtype, inputs])
        if done.get(name, {}).get("key") == key:
            found.append(done[name])
            continue
        if task.model not in loaded:
            loaded[task.model] = load(task.model, dtype=config.dtype)
        started = time.perf_counter()
        builder = configs.resolve_builder(KINDS[task.kind])
        outcome = builder(loaded[task.model], **task.section)
        outcome = {**outcome, "items": outcome.get("items", [])[: options["max_items"]]}
        seconds = round(time.perf_counter() - started, 2)
        more = {"model": task.model, "seconds": seconds, "key": key, "settings": task.section}
        found.append(results.finish(name, task.kind, outcome, **more))
        results.write(workdir, found)
    results.write(workdir, found)
    files.write_json(f"{workdir}/config.json", settings)
    if options["console"]:
        results.show(f"{config.model}", found)
    return found


def report_options(console: bool = True, max_items: int = 200) -> dict[str, Any]:
    """Check the report section.

    Args:
        console: print the table of results.
        max_items: single questions or generations kept in each task's file.
    """
    return {"console": console, "max_items": max_items}


def check(config: Any) -> dict[str, Task]:
    """Return the tasks by name, each checked against its function."""
    if not config.tasks:
        raise ConfigError("config.tasks is empty.", f"Add a task; kinds: {', '.join(KINDS)}.")
    tasks = {}
    for name in config.tasks:
        section = dict(config.tasks[name].items())
        kind = str(section.pop("kind", name))
        model = str(section.pop("model", "") or config.model)
        builder = configs.resolve_builder(configs.choose(kind, KINDS, f"kind of task {name}:"))
        bound = configs.bind(builder, section, f"tasks.{name}", given=("lm",))
        tasks[name] = Task(kind, model, bound)
    return tasks


def _inputs(task: Task) -> list[str]:
    """List the places a task depends on: the model, and every option that names a path."""
    named = ("documents", "path", "train", "run", "target")
    return [task.model, *(str(task.section[k]) for k in named if task.section.get(k))]


def fingerprint(location: str) -> str:
    """Identify a model or data set on disk by the names, sizes and times of its files."""
    path = Path(location)
    listed = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    kept = [p for p in listed if p.exists() and p.name not in ("metrics.jsonl", "report.html")]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in kept]
    return files.hash_json([location, stats])

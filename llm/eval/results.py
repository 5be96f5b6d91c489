# SPDX-License-Identifier: Apache-2.0
"""Results of evaluation tasks: checked, written as JSON, shown as a table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm import files


def finish(task: str, kind: str, outcome: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return {"task", "kind", "n", "metrics", ..., "items"} of a task's outcome.

    Numbers that are not finite (an error of a single item) become None, so that the file is JSON.
    """
    head = {"task": task, "kind": kind, "n": outcome["n"], "metrics": outcome["metrics"], **more}
    rest = {k: v for k, v in outcome.items() if k not in head}
    return finite({**head, **rest})


def finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(workdir: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write results/<task>.json each, and results.json with all but the single items."""
    for result in results:
        files.write_json(f"{workdir}/results/{result['task']}.json", result)
    files.write_json(f"{workdir}/results.json", summary(results))


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results without their single items."""
    return [{k: v for k, v in result.items() if k != "items"} for result in results]


def read(workdir: str) -> list[dict[str, Any]]:
    """Read the results.json of an evaluation's workdir (or such a file itself)."""
    source = files.path(workdir)
    return files.read_json(source / "results.json" if source.is_dir() else source)


def rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return (task, metric, value, stderr, 95 % interval, chance, n) of every number, as text."""
    table: list[tuple[str, ...]] = []
    for result in results:
        for name, metric in result["metrics"].items():
            interval = metric.get("interval") or ()
            shown = (
                str(result["task"]),
                name,
                number(metric["value"]),
                number(metric.get("stderr")),
                " – ".join(map(number, interval)),
                number(metric["chance"]) if metric.get("chance") is not None else "",
                str(result["n"]),
            )
            table.append(shown)
    return table


def number(value: float | None) -> str:
    """Write a number with four significant digits, "–" where there is none."""
    return "–" if value is None else f"{value:.4g}"


def show(title: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Print the table to the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for heading in ("task", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("value", "± stderr", "95 % interval", "chance", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows(results):
        table.add_row(*row)
    Console(width=max(120, Console().width)).print(table)


def known_tasks(workdir: str) -> dict[str, dict[str, Any]]:
    """Return the results already in a workdir, by task."""
    folder = Path(workdir) / "results"
    found = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return {path.stem: files.read_json(path) for path in found}

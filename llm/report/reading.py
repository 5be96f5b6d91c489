# SPDX-License-Identifier: Apache-2.0
"""Read what a run left in its folder, forgiving what a crash or a resume does to it."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm import files
from llm.core.redact import redact_tree

# Small JSON files that stages write beside their results; each is optional.
ARTIFACTS = {
    "environment": "environment.json",
    "manifest": "documents/manifest.json",
    "funnel": "funnel.json",
    "tokenizer": "tokenizer/meta.json",
    "meta": "meta.json",
    "fertility": "fertility.json",
    "rows": "rows/manifest.json",
    "summary": "summary.json",
}


class Run(NamedTuple):
    """What a run's folder holds.

    Attributes:
        path: the folder.
        name: its last part.
        config: the resolved config without secrets.
        metrics: one dict per step, in order, each with "step" and "time" (seconds).
        samples: {"step", "prompt", "text"} in order.
        results: the results files, sorted by name.
        artifacts: the files of `ARTIFACTS` that exist.
        broken: names of files, or how many lines of one, that could not be read.
    """

    path: Path
    name: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    results: list[dict[str, Any]]
    artifacts: dict[str, Any]
    broken: list[str]

    @property
    def empty(self) -> bool:
        """Tell whether there is nothing to report."""
        return not (self.config or self.metrics or self.samples or self.results or self.artifacts)


class Series(NamedTuple):
    """One metric over the run, finite values only."""

    steps: list[float]
    times: list[float]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.values)


def read_run(directory: Any) -> Run:
    """Read a run's folder; a file that is missing or broken leaves its part empty."""
    root = files.path(directory)
    broken: list[str] = []
    config = _read_object(root / "config.json", broken)
    results = []
    folder = root / "results"
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        for entry in _as_list(_read_any(file, broken)):
            if isinstance(entry, Mapping) and isinstance(entry.get("metrics"), Mapping):
                results.append({"task": file.stem, **entry})
    artifacts = {}
    for key, relative in ARTIFACTS.items():
        value = _read_object(root / relative, broken)
        if value:
            artifacts[key] = redact_tree(value)
    return Run(
        path=root,
        name=root.name,
        config=redact_tree(config),
        metrics=merge_steps(_read_lines(root / "metrics.jsonl", broken)),
        samples=[s for s in _read_lines(root / "samples.jsonl", broken) if "text" in s],
        results=redact_tree(results),
        artifacts=artifacts,
        broken=broken,
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_any(file: Any, broken: list[str]) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        broken.append(file.name)
        return None


def _read_object(file: Any, broken: list[str]) -> dict[str, Any]:
    value = _read_any(file, broken)
    return value if isinstance(value, dict) else {}


def _read_lines(file: Any, broken: list[str]) -> list[dict[str, Any]]:
    """Read JSON lines; a torn or foreign line is counted, not fatal."""
    if not file.is_file():
        return []
    rows, bad = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        broken.append(f"{file.name} ({bad} line{'s' if bad > 1 else ''})")
    return rows


def merge_steps(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join the lines of each step and undo what a resumed run repeats.

    A line whose step is lower than the one before it starts a resumed part: what the stopped
    part had written from that step on is dropped. Where the clock restarts, time goes on from
    the last one.
    """
    merged: list[dict[str, Any]] = []
    offset = last = 0.0
    for row in rows:
        step = row.get("step")
        if not isinstance(step, int | float) or not math.isfinite(step):
            continue
        rewound = bool(merged) and step < merged[-1]["step"]
        while merged and merged[-1]["step"] >= step and rewound:
            merged.pop()
        clock = row.get("time")
        if isinstance(clock, int | float) and math.isfinite(clock):
            if clock + offset < last:
                offset = (merged[-1]["time"] if merged else 0.0) if rewound else last
            last = clock + offset
        entry = {**row, "time": last}
        if merged and merged[-1]["step"] == step:
            merged[-1].update(entry)
        else:
            merged.append(entry)
    return merged


def series(run: Run, key: str) -> Series:
    """Return one metric of a run over steps and time."""
    found = Series([], [], [])
    for row in run.metrics:
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            found.steps.append(float(row["step"]))
            found.times.append(float(row["time"]))
            found.values.append(float(value))
    return found


def non_finite(run: Run, key: str = "train/loss") -> int:
    """Count the steps at which a metric was not a finite number."""
    values = [row[key] for row in run.metrics if key in row]
    return sum(not (isinstance(v, int | float) and math.isfinite(v)) for v in values)


def metric_names(run: Run) -> list[str]:
    """Return the names of all metrics of a run, in the order they first appear."""
    names: dict[str, None] = {}
    for row in run.metrics:
        for key, value in row.items():
            if key not in ("step", "time") and isinstance(value, int | float):
                names.setdefault(key)
    return list(names)


def lookup(config: Mapping[str, Any], dotted: str, default: Any = None) -> Any:
    """Return `config["a"]["b"]` for "a.b", or the default."""
    node: Any = config
    for part in dotted.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return default
        node = node[part]
    return node

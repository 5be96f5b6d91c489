# SPDX-License-Identifier: Apache-2.0
"""Metrics as JSON lines, with TensorBoard and Weights & Biases on request."""

import json
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from llm import files
from llm.core.lines import Lines
from llm.errors import ConfigError, StorageError

_LOG = logging.getLogger("llm.metrics")


def read_lines(source: Any) -> list[dict[str, Any]]:
    """Read a JSON-lines file, leaving out a torn last line; [] if there is no file."""
    location = files.path(source)
    if not location.exists():
        return []
    lines = []
    for text in location.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def weighted_mean(parts: Iterable[Mapping[str, float]], weight: str) -> dict[str, float]:
    """Average dicts of metrics by one of their entries; that entry itself is summed."""
    total: dict[str, float] = {}
    mass: dict[str, float] = {}
    for part in parts:
        share = float(part[weight])
        for name, value in part.items():
            if name == weight:
                total[name] = total.get(name, 0.0) + share
            elif math.isfinite(value):
                total[name] = total.get(name, 0.0) + share * float(value)
                mass[name] = mass.get(name, 0.0) + share
    return {k: v if k == weight else v / max(mass[k], 1e-9) for k, v in total.items()}


class Writer:
    """Append metric lines to `<workdir>/metrics.jsonl` and to the trackers asked for.

    A full disk or a dead tracker never stops training: it is reported once.

    Args:
        workdir: the run's folder.
        start: the step that training starts from; later lines of an earlier try are removed.
        trackers: any of "tensorboard", "wandb".
        config: what a tracker should show as the run's config.
        enabled: False on all processes but the first.
    """

    def __init__(
        self,
        workdir: str,
        start: int = 0,
        trackers: Iterable[str] = (),
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
    ):
        self.enabled, self._warned = enabled, False
        self._lines = Lines(files.path(workdir) / "metrics.jsonl")
        self._sinks = [_tracker(name, workdir, config or {}) for name in trackers if enabled]
        self.last: dict[str, Any] = {}  # what an earlier try wrote last, lost or not
        self.kept: dict[str, Any] = {}  # the newest accounts that still hold; see `rewind`
        self._remove_after(start)

    def rewind(self, step: int) -> None:
        """Remove the lines after a step, which will be written again.

        `last` becomes the newest line there was, `kept` the newest remaining one with accounts of
        time ("time/…").
        """
        try:
            self._remove_after(step)
        except (OSError, StorageError) as error:
            self._warn(error)

    def _remove_after(self, step: int) -> None:
        lines = read_lines(self._lines.path)
        kept = [line for line in lines if line.get("step", 0) <= step]
        accounts = [line for line in kept if any(key.startswith("time/") for key in line)]
        self.last = max(lines, key=lambda line: line.get("time", 0), default={})
        self.kept = accounts[-1] if accounts else {}
        if self.enabled:
            self._lines.replace("".join(json.dumps(line) + "\n" for line in kept))

    @property
    def seconds_before(self) -> float:
        """Return the running time of all earlier tries, the work they lost included."""
        return float(self.last.get("time", 0.0))

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add one line; values that are not finite are written as null."""
        if not self.enabled:
            return
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        try:
            self._lines.append(json.dumps({"step": step, "time": round(seconds, 3), **clean}))
            for sink in self._sinks:
                sink(step, clean)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            _LOG.warning("metrics cannot be written (%s); training goes on", error)
        self._warned = True


def _tracker(name: str, workdir: str, config: Mapping[str, Any]) -> Any:
    """Return a function (step, values) that writes to one tracker."""
    if name == "tensorboard":
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tensorboard needs tensorboardX.", "pip install 'jax-llm[track]'"
            ) from error
        writer = SummaryWriter(str(files.path(workdir) / "tensorboard"))
        return lambda step, values: [
            writer.add_scalar(k, v, step) for k, v in values.items() if v is not None
        ]
    if name == "wandb":
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("wandb is not installed.", "pip install 'jax-llm[track]'") from error
        run = wandb.init(dir=workdir, config=dict(config), resume="allow")
        return lambda step, values: run.log(dict(values), step=step)
    raise ConfigError(f"Unknown tracker {name!r}.", "Known: tensorboard, wandb.")

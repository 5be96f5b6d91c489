# SPDX-License-Identifier: Apache-2.0
"""Keep what a bad step had read, so that a person can look at it: `bad_batches.jsonl`."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llm import files
from llm.core.lines import Lines
from llm.core.redact import redact

LIMIT = 100  # records of a run's folder
ROWS, CHARACTERS = 8, 240  # of a record's text

_LOG = logging.getLogger(__name__)


class Bad(NamedTuple):
    """A step that was not as it should be.

    Attributes:
        step: number of the update, from 1.
        reason: "non_finite" or "spike".
        loss: of the step.
        grad_norm: of the step, before clipping.
        score: robust deviations above the median, of a spike.
        applied: whether the update was made all the same.
    """

    step: int
    reason: str
    loss: float
    grad_norm: float
    score: float
    applied: bool


def find(step: int, metrics: Mapping[str, float]) -> Bad | None:
    """Judge the fetched metrics of one step; None if nothing is wrong."""
    loss, norm = metrics["loss"], metrics.get("grad_norm", 0.0)
    score, applied = metrics.get("spike", 0.0), metrics.get("applied", 1.0) > 0
    if not (math.isfinite(loss) and math.isfinite(norm)) or (not applied and not score):
        return Bad(step, "non_finite", loss, norm, 0.0, applied)
    return Bad(step, "spike", loss, norm, score, applied) if score else None


class BadBatches:
    """Write records of bad steps, a bounded number of them.

    Args:
        workdir: the run's folder.
        source: the training data; only what has `ids` can be read again.
        tokenizer: decodes rows, or None.
        enabled: False on all processes but the first.
    """

    def __init__(self, workdir: str, source: Any, tokenizer: Any, enabled: bool = True):
        self._lines = Lines(files.path(workdir) / "bad_batches.jsonl")
        self._source, self._tokenizer, self._enabled = source, tokenizer, enabled
        records = self._lines.read() if enabled else ""
        self._known = {_key(line) for line in records.splitlines()}

    def record(self, bad: Bad) -> None:
        """Add a step's record; what cannot be read or written never stops training."""
        if not self._enabled or len(self._known) >= LIMIT:
            return
        line = json.dumps(self._describe(bad), ensure_ascii=False)
        if _key(line) in self._known:
            return
        self._known.add(_key(line))
        try:
            self._lines.append(line)
        except OSError as error:
            _LOG.warning("the batch of step %d cannot be kept (%s)", bad.step, error)

    def _describe(self, bad: Bad) -> dict[str, Any]:
        numbers = {k: _number(v) for k, v in bad._asdict().items()}
        ids = getattr(self._source, "ids", None)
        if ids is None or not hasattr(self._source, "fingerprint"):
            return numbers  # a rollout: made once, with parameters that are gone
        batch = self._source.batch(bad.step - 1)
        data_step = getattr(self._source, "data_step", lambda step: step)(bad.step - 1)
        return {
            **numbers,
            "data_step": data_step,
            "ids": _ids(ids, bad.step - 1),
            "non_finite_fields": [
                name
                for name, values in batch.items()
                if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all()
            ],
            "text": self._texts(batch),
        }

    def _texts(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Return the beginnings of the first rows, where there is a tokenizer."""
        names = [n for n in ("tokens", "chosen_tokens", "rejected_tokens") if n in batch]
        if self._tokenizer is None or not names:
            return []
        texts = []
        for row in range(min(ROWS, len(batch[names[0]]))):
            for name in names[:2]:
                tokens = batch[name][row][:CHARACTERS].tolist()
                texts.append(redact(self._tokenizer.decode(tokens)[:CHARACTERS]))
        return texts


def _ids(ids: Any, step: int) -> list[list[Any]]:
    try:
        return [list(one) for one in ids(step)]
    except AttributeError:  # a wrapper around a source that has none
        return []


def _number(value: Any) -> Any:
    """Return a number as JSON has it: what is not finite as its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _key(line: str) -> tuple[Any, Any, Any]:
    """Identify a record: a resumed run meets the same steps again."""
    try:
        found = json.loads(line)
    except ValueError:
        return (line, None, None)
    return found.get("step"), found.get("reason"), found.get("data_step")

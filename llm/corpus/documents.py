# SPDX-License-Identifier: Apache-2.0
"""Documents, the shards they come in, and what a document function returns."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Document = dict[str, Any]
Shard = dict[str, Any]


class Drop(NamedTuple):
    """Say why a document goes: the rule's reason, the value found and the threshold it broke."""

    reason: str
    value: float
    threshold: float


class Plan(NamedTuple):
    """List the shards of a source, the hash of all input, and notes for the report."""

    shards: list[Shard]
    input_hash: str
    notes: dict[str, Any]


Outcome = Document | Drop
Check = tuple[str, float, float, int]  # reason, value, threshold; 1: at least that, -1: at most


def judge(document: Document, checks: Iterable[Check], result: Document | None = None) -> Outcome:
    """Return the first broken check as a `Drop`, else the document (or `result` in its place).

    All checks are noted under "_checks", for the histograms of the report.
    """
    made = tuple(checks)
    document.setdefault("_checks", []).extend(made)
    for reason, value, threshold, sign in made:
        if value < threshold if sign > 0 else value > threshold:
            return Drop(reason, float(value), float(threshold))
    return document if result is None else result


BatchFunction = Callable[[list[Document]], list[Outcome]]

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

    Values of all checks are noted under "_values", for the histograms of the report.
    """
    values = document.setdefault("_values", {})
    outcome: Outcome = document if result is None else result
    broken = False
    for reason, value, threshold, sign in checks:
        values[reason] = (value, threshold, sign)
        if not broken and sign * (value - threshold) < 0:
            outcome, broken = Drop(reason, float(value), float(threshold)), True
    return outcome


BatchFunction = Callable[[list[Document]], list[Outcome]]

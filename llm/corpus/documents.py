# SPDX-License-Identifier: Apache-2.0
"""Documents, the shards they come in, and what a document function returns."""

from collections.abc import Callable
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
BatchFunction = Callable[[list[Document]], list[Outcome]]

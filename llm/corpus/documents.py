# SPDX-License-Identifier: Apache-2.0
"""What a document function returns: the kept document, or why it was dropped."""

from collections.abc import Callable
from typing import Any, NamedTuple

Document = dict[str, Any]


class Drop(NamedTuple):
    """Say why a document goes: the rule's reason, the value found and the threshold it broke."""

    reason: str
    value: float
    threshold: float


Outcome = Document | Drop
BatchFunction = Callable[[list[Document]], list[Outcome]]

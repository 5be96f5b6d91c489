# SPDX-License-Identifier: Apache-2.0
"""Documented functions as the documents' meta fields describe them."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

LONGEST_CALL = 160  # characters; a longer parameter list is cut


class Function(NamedTuple):
    """A documented function: "def f(x)", "package.module.f(x)", "package.module.f", and what it
    does, in a sentence.
    """

    signature: str
    call: str
    name: str
    summary: str


def function_of(meta: Mapping[str, Any]) -> Function:
    """Read a document's meta; fields it lacks are empty."""
    signature = str(meta.get("signature") or "").strip()
    qualified = str(meta.get("qualname") or "")
    head, bracket, rest = re.sub(r"^(async )?(def|class) ", "", signature).partition("(")
    if qualified.endswith(head):
        head = f"{meta.get('module', '')}.{qualified}".lstrip(".")
    call = head + bracket + rest
    call = call if len(call) <= LONGEST_CALL else call[: LONGEST_CALL - 3] + "..."
    return Function(signature, call, head, str(meta.get("summary") or "").strip())

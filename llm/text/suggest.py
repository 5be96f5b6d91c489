# SPDX-License-Identifier: Apache-2.0
"""Words for an unknown name: what it was, what was probably meant, what exists."""

import difflib
from collections.abc import Iterable


def did_you_mean(kind: str, name: object, known: Iterable[str]) -> tuple[str, str]:
    """Return (problem, fix) for an unknown name, as the arguments of an error.

    Args:
        kind: what the name stands for, e.g. "Filter".
        name: what the user wrote.
        known: the names that exist.
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    return f'{kind} "{name}" is not known.{hint}', f"Known: {', '.join(names)}."

# SPDX-License-Identifier: Apache-2.0
"""Few shapes, so few programs: round sizes up, and count what is traced."""

import collections
import contextlib
from typing import Any

from llm.core.sharding import batch_parts, use_layout
from llm.errors import ConfigError

_COMPILED: collections.Counter[str] = collections.Counter()


def bucket(size: int, smallest: int = 1, largest: int | None = None) -> int:
    """Round up to a power of two or one and a half of one, at least `smallest`.

    `largest` caps the result where size itself does not exceed it.
    """
    power = 1 << max(0, size - 1).bit_length()
    rounded = power * 3 // 4 if power >= 8 and size <= power * 3 // 4 else power
    rounded = max(rounded, smallest)
    return rounded if largest is None else max(size, min(rounded, largest))


def power_of_two(size: int) -> int:
    """Round up to a power of two."""
    return 1 << max(0, size - 1).bit_length()


def row_count(rows: int, parts: int = 1) -> int:
    """Round a batch up to a power of two, and further so that `parts` devices share it evenly."""
    return -(-power_of_two(rows) // parts) * parts


def count_program(name: str) -> None:
    """Note that a program is being traced; called from inside the traced function, so that it runs
    once per program and never when a compiled program is used again."""
    _COMPILED[name] += 1


def compiled() -> dict[str, int]:
    """Return how many programs of each name were traced in this process so far."""
    return dict(_COMPILED)


def layout(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    """Put the mesh's layout in force, or do nothing without a mesh."""
    return contextlib.nullcontext() if mesh is None else use_layout(mesh)


def check_decodes(mesh: Any) -> None:
    """Refuse a mesh on which single tokens cannot be computed.

    Raises:
        ConfigError: it splits the sequence.
    """
    if mesh is not None and mesh.shape["context"] > 1:
        raise ConfigError(
            f"mesh.context={mesh.shape['context']} splits long sequences; decoding and scoring "
            "compute single tokens.",
            "Load the model over mesh.tensor, fsdp or data; `logits` works on any mesh.",
        )


def parts(mesh: Any) -> int:
    """Return of what number the rows of a batch must be a multiple."""
    return 1 if mesh is None else batch_parts(mesh)

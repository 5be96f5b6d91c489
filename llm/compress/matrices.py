# SPDX-License-Identifier: Apache-2.0
"""A parameter as plain matrices [stack, outputs, inputs], whatever its axes, and back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

STACKED = ("layers", "expert", "stage")
_INPUT_FIRST = "embed"


def contraction_axes(names: Sequence[str | None]) -> tuple[int, ...]:
    """Return the axes of a weight that a matrix product sums over.

    Args:
        names: its logical axes, such as ("layers", "embed", "heads", "head_dim").

    Returns:
        Axis numbers; () for a weight that is not a matrix.
    """
    axes = [axis for axis, name in enumerate(names) if name not in STACKED]
    if len(axes) < 2:
        return ()
    if "vocab" in names or names[axes[0]] == _INPUT_FIRST:
        return tuple(axis for axis in axes if names[axis] == _INPUT_FIRST)
    return tuple(axes[:-1])


def split(weight: Any, names: Sequence[str | None]) -> np.ndarray:
    """Return a weight as float32 [stack, outputs, inputs]."""
    groups = _groups(names)
    order = [axis for group in groups for axis in group]
    sizes = [math.prod(np.shape(weight)[axis] for axis in group) for group in groups]
    return np.asarray(weight, np.float32).transpose(order).reshape(sizes)


def join(matrices: np.ndarray, shape: Sequence[int], names: Sequence[str | None]) -> np.ndarray:
    """Return [stack, outputs, inputs] as an array of this shape, with these logical axes."""
    order = [axis for group in _groups(names) for axis in group]
    return matrices.reshape([shape[axis] for axis in order]).transpose(np.argsort(order))


def _groups(names: Sequence[str | None]) -> tuple[list[int], list[int], list[int]]:
    """Return the axes of the stack, of the outputs and of the inputs."""
    summed = list(contraction_axes(names))
    stacked = [axis for axis, name in enumerate(names) if name in STACKED]
    return stacked, [a for a in range(len(names)) if a not in (*stacked, *summed)], summed


def modules(name: str, count: int) -> list[str]:
    """Return which module reads each matrix of a parameter whose layers are stacked.

    "decoder/layers/attention/query/kernel" of two layers are those of "decoder/layers/0/…" and
    "decoder/layers/1/…".
    """
    module, _, _ = name.rpartition("/")
    if "/layers/" not in module:
        return [module] * count
    return [module.replace("/layers/", f"/layers/{i}/", 1) for i in range(count)]

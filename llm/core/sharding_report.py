# SPDX-License-Identifier: Apache-2.0
"""Say where everything lives: parameters, optimizer state, and constrained activations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from llm.core import sharding


class ShardingRow(NamedTuple):
    """One line of a sharding report; bytes are per device."""

    name: str
    shape: tuple[int, ...]
    spec: str
    bytes_per_device: int
    replicated: bool


def _row(name: str, leaf: Any, place: NamedSharding) -> ShardingRow:
    size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    per_device = int(np.prod(place.shard_shape(tuple(leaf.shape)))) * leaf.dtype.itemsize
    whole = per_device == size and place.mesh.size > 1
    return ShardingRow(name, tuple(leaf.shape), str(place.spec), per_device, whole)


def sharding_report(shapes: Any, shardings: Any) -> tuple[list[ShardingRow], dict[str, float]]:
    """Say where every leaf of a tree lives: of parameters, or of optimizer state.

    Args:
        shapes: tree of arrays or `jax.ShapeDtypeStruct`.
        shardings: tree of `NamedSharding` alike.

    Returns:
        Rows (largest first) and totals: bytes per device, bytes in all, share replicated.
    """
    from llm.core.trees import flatten

    placed = flatten(shardings, is_leaf=lambda x: isinstance(x, NamedSharding))
    leaves = flatten(shapes)
    rows = [_row(name, leaf, placed[name]) for name, leaf in leaves.items()]
    rows.sort(key=lambda row: -row.bytes_per_device)
    total = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves.values())
    held = sum(row.bytes_per_device for row in rows)
    copies = sum(row.bytes_per_device for row in rows if row.replicated)
    return rows, {
        "bytes_per_device": held,
        "bytes_total": total,
        "replicated_fraction": copies / total if total else 0.0,
    }


def activation_report(function: Callable[..., Any], *arguments: Any) -> list[ShardingRow]:
    """Say how every activation that a function constrains is laid out, without running it.

    Args:
        function: traced on shapes, under the layout in force.
        arguments: arrays or their shapes.

    Returns:
        One row per kind of constraint and shape, largest per device first; layers that are scanned
        count once.
    """
    with sharding.noting() as noted:
        jax.eval_shape(function, *arguments)
    rows = {(axes, x.shape): _row(axes, x, place) for axes, x, place in noted}
    return sorted(rows.values(), key=lambda row: -row.bytes_per_device)

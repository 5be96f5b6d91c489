# SPDX-License-Identifier: Apache-2.0
"""Weights of dense maps in 8 bits, multiplied as they are: for guesses that a full model checks.

A narrow parameter stands in the place of its array: {"rows": int8 [N, K], "scale": float32 [N]},
one row for every output. XLA's CPU backend multiplies two or more rows of int8 by int8 weights in
a quarter of float32's time, but takes ten times as long for a single row or for float32 rows; so
each state goes in as two rows, its leading 8 bits and the next 8: one feels the weights' rounding
only.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

_STEPS = 127.0  # of an int8, on either side of 0
_FINER = 2 * _STEPS  # of the second row within one of the first


def is_narrow(leaf: Any) -> bool:
    """Tell whether a node of a parameter tree is one narrow parameter."""
    return isinstance(leaf, Mapping) and "rows" in leaf


def narrow(kernel: Array, summed: int) -> dict[str, Array]:
    """Round a kernel whose first `summed` axes are summed over, with one scale per output."""
    K = math.prod(kernel.shape[:summed])
    rows = kernel.astype(jnp.float32).reshape(K, -1).T
    scale = jnp.maximum(jnp.max(jnp.abs(rows), axis=1), 1e-30) / _STEPS
    return {"rows": jnp.round(rows / scale[:, None]).astype(jnp.int8), "scale": scale}


_narrow = jax.jit(narrow, static_argnames="summed")


def narrowed(params: Any) -> Any:
    """Return a decoder's parameters, layers apart, with the dense kernels and the head narrow.

    A head tied to the embedding gets the entry embed/narrow; other arrays are those given.
    """

    def walk(tree: Any, name: str) -> Any:
        made = {key: walk(x, key) if isinstance(x, Mapping) else x for key, x in tree.items()}
        if isinstance(made.get("kernel"), jax.Array):
            made["kernel"] = _narrow(made["kernel"], 2 if name == "output" else 1)
        return made

    made = walk(params, "")
    if "kernel" not in params.get("lm_head", {}):
        made["embed"]["narrow"] = _narrow(params["embed"]["embedding"].T, 1)
    return made


def product(x: Array, stored: Mapping[str, Array], summed: int, kept: tuple[int, ...]) -> Array:
    """Multiply states by narrow weights in float32.

    Args:
        x: [..., K], where K may be `summed` axes.
        kept: the sizes that the outputs N stand for.
    """
    lead = x.shape[: x.ndim - summed]
    R = math.prod(lead)
    x = x.astype(jnp.float32).reshape(R, -1)
    unit = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), 1e-30) / _STEPS
    steps = x / unit
    leading = jnp.round(steps)
    halves = jnp.concatenate([leading, jnp.round((steps - leading) * _FINER)]).astype(jnp.int8)
    sums = jax.lax.dot_general(
        halves, stored["rows"], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    ).astype(jnp.float32)
    y = (sums[:R] + sums[R:] / _FINER) * unit * stored["scale"][None]
    return y.reshape(*lead, *kept)

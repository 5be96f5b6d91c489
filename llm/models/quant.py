# SPDX-License-Identifier: Apache-2.0
"""Weights stored as small integers with scales, and the way back to numbers.

A quantised parameter is a dict in the place of its array:
    {"q": int8 [...], "scale": float [...]}      value = q * scale
    {"q4": uint8 [..., n / 2], "scale": ...}     two 4-bit integers a byte, for storage
The scale has the parameter's rank; along each axis it has the axis' size, 1, or a divisor of the
size (one scale per block).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def is_quantized(leaf: Any) -> bool:
    """Tell whether a node of a parameter tree is one quantised parameter."""
    return isinstance(leaf, Mapping) and "scale" in leaf and ("q" in leaf or "q4" in leaf)


def any_quantized(params: Any) -> bool:
    """Tell whether a parameter tree has quantised parameters."""
    return any(is_quantized(x) for x in jax.tree.leaves(params, is_leaf=is_quantized))


def dequantize(params: Any, dtype: Any = "float32") -> Any:
    """Return the tree with every quantised parameter as an array of `dtype`, others untouched."""
    return jax.tree.map(
        lambda leaf: _stored(leaf, jnp.dtype(dtype).name), params, is_leaf=is_quantized
    )


def _stored(leaf: Any, dtype: str) -> Any:
    return _materialize(dict(leaf), dtype) if is_quantized(leaf) else leaf


def materialize(leaf: Any, dtype: Any = "float32") -> Any:
    """Return one parameter as an array: `leaf` itself unless it is quantised."""
    if not is_quantized(leaf):
        return leaf
    integers = jnp.asarray(leaf["q"] if "q" in leaf else unpack_nibbles(leaf["q4"]))
    scale = jnp.asarray(leaf["scale"], jnp.float32)
    for axis, (whole, blocks) in enumerate(zip(integers.shape, scale.shape, strict=True)):
        if blocks not in (1, whole):
            scale = jnp.repeat(scale, whole // blocks, axis=axis)
    value = integers.astype(jnp.float32) * jnp.broadcast_to(scale, integers.shape)
    return value.astype(jnp.dtype(dtype))


_materialize = jax.jit(materialize, static_argnames="dtype")


def unpack(params: Any) -> Any:
    """Return the tree with 4-bit parameters as int8 ones, the form that a model can read."""

    def one(leaf: Any) -> Any:
        if is_quantized(leaf) and "q4" in leaf:
            return {"q": unpack_nibbles(leaf["q4"]), "scale": leaf["scale"]}
        return leaf

    return jax.tree.map(one, params, is_leaf=is_quantized)


def pack_nibbles(integers: Any) -> np.ndarray:  # [..., n] in [-8, 7] -> uint8 [..., n / 2]
    """Put two 4-bit integers into each byte, the first in the low half."""
    nibbles = np.asarray(integers).astype(np.int8).astype(np.uint8) & 0xF
    return nibbles[..., ::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: Any) -> Array:  # uint8 [..., n / 2] -> int8 [..., n]
    """Undo `pack_nibbles`."""
    data = jnp.asarray(packed, jnp.uint8)
    halves = jnp.stack([data & 0xF, data >> 4], axis=-1).astype(jnp.int8)
    signed = jnp.where(halves > 7, halves - 16, halves)
    return signed.reshape(*data.shape[:-1], 2 * data.shape[-1])

# SPDX-License-Identifier: Apache-2.0
"""Weights stored as small integers with scales, and the way back to numbers.

A quantised parameter is a dict in the place of its array:
    {"q": int8 [...], "scale": float [...]}      value = q * scale
    {"q4": uint8 [..., n / 2], "scale": ...}     two 4-bit integers a byte, for storage
The scale has the parameter's rank; along each axis it has the axis' size, 1, or a divisor of the
size (one scale per block).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def is_quantized(leaf: Any) -> bool:
    """Tell whether a node of a parameter tree is one quantised parameter."""
    return isinstance(leaf, Mapping) and "scale" in leaf and ("q" in leaf or "q4" in leaf)


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


def initialiser(
    init: Callable[..., Array], axes: Sequence[str | None], method: str, block: int
) -> Callable[..., Any]:
    """Return an initialiser of a quantised parameter with the logical axes of the plain one."""

    def make(key: Array, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        stored = store(init(key, shape, dtype), method, block)
        # Blocks may be fewer than devices: the scales' last axis is not split.
        names = {name: (*axes[:-1], None if name == "scale" else axes[-1]) for name in stored}
        return {name: nn.LogicallyPartitioned(x, names[name]) for name, x in stored.items()}

    return make


def store(weight: Array, method: str, block: int) -> dict[str, Array]:
    """Round a weight to integers: to nearest, one scale per `block` of its last axis.

    Args:
        weight: [..., n].
        method: "int8" or "int4"; four bits are packed where n is even.
        block: n is cut into blocks of it where it divides; otherwise, or if 0, each row of n
            shares one scale.
    """
    n = weight.shape[-1]
    size = block if block and n % block == 0 else n
    blocks = weight.astype(jnp.float32).reshape(*weight.shape[:-1], n // size, size)
    largest = 7.0 if method == "int4" else 127.0
    scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / largest
    scale = jnp.where(scale == 0, 1.0, scale)
    integers = jnp.round(blocks / jnp.broadcast_to(scale, blocks.shape))
    integers = integers.reshape(weight.shape).astype(jnp.int8)
    if method == "int4" and n % 2 == 0:
        return {"q4": pack(integers), "scale": scale[..., 0]}
    return {"q": integers, "scale": scale[..., 0]}


def pack(integers: Array) -> Array:  # int8 [..., n] -> uint8 [..., n / 2]
    """Do what `pack_nibbles` does, in JAX."""
    nibbles = integers.astype(jnp.uint8) & 0xF
    return nibbles[..., ::2] | (nibbles[..., 1::2] << 4)


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

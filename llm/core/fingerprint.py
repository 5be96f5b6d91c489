# SPDX-License-Identifier: Apache-2.0
"""A short name for the content of arrays, the same wherever and however they are laid out."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm import files

Array = jax.Array

_SALTS = (0x9E3779B9, 0x85EBCA6B)


def fingerprint(named: Mapping[str, Any]) -> str:
    """Return a hash of names, shapes, dtypes and every bit of arrays.

    Each device sums mixed bits of its own part; whole numbers add to the same in any order, so no
    array is moved. It tells apart what differs by accident, and is no defence against forgery.

    Args:
        named: name -> array, on devices or not.
    """
    sums = jax.device_get(_sums(dict(named)))
    return files.hash_json(
        [
            [name, list(named[name].shape), str(named[name].dtype), *map(int, sums[name])]
            for name in sorted(named)
        ]
    )


@jax.jit
def _sums(named: dict[str, Array]) -> dict[str, Array]:
    return {name: _sum(x) for name, x in named.items()}


def _sum(x: Array) -> Array:  # -> uint32 [2]
    """Sum over all numbers a mix of their bits and their place, modulo 2^32."""
    kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    mixed = [_mix(bits ^ _mix(place + jnp.uint32(salt))) for salt in _SALTS]
    return jnp.stack([jnp.sum(one, dtype=jnp.uint32) for one in mixed])


def _mix(x: Array) -> Array:
    """Spread every bit over the whole word (the last steps of MurmurHash3, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)

# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of incremental decoding: every row writes at its own position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm.models.config import TransformerConfig

Array = jax.Array


class Cache(NamedTuple):
    """Keys and values seen so far, for all layers; a pytree, so it passes through jit and scan.

    A call with T tokens writes each row's real tokens (segment > 0) at that row's next free slots,
    wherever the padding stands, so prompts of unequal length need no common layout. Rewinding a
    row is `cache._replace(lengths=...)`. Tokens that do not fit are dropped: size the cache.
    """

    k: Array  # [L, B, S, K, H]
    v: Array  # [L, B, S, K, H]
    positions: Array  # [B, S] int32: the position each slot's token had
    lengths: Array  # [B] int32: slots used
    cross_k: Array | None = None  # [L, B, C, K, H] encoder side of an encoder-decoder
    cross_v: Array | None = None
    cross_segments: Array | None = None  # [B, C] int32

    @property
    def size(self) -> int:
        """Slots per row."""
        return self.k.shape[2]

    def segments(self) -> Array:
        """Return [B, S] int32: 1 where a slot is in use."""
        return (jnp.arange(self.size)[None] < self.lengths[:, None]).astype(jnp.int32)


def init_cache(
    config: TransformerConfig, batch: int, length: int, dtype: str = "", encoder_length: int = 0
) -> Cache:
    """Make an empty cache of `length` slots per row (dtype "" = the compute dtype)."""
    kind = jnp.dtype(dtype or config.dtype)
    shape = (config.n_layers, batch, length, config.n_kv_heads, config.head_dim)
    cache = Cache(
        k=jnp.zeros(shape, kind),
        v=jnp.zeros(shape, kind),
        positions=jnp.zeros((batch, length), jnp.int32),
        lengths=jnp.zeros((batch,), jnp.int32),
    )
    if config.architecture != "encoder_decoder":
        return cache
    cross = (config.n_layers, batch, encoder_length, config.n_kv_heads, config.head_dim)
    return cache._replace(
        cross_k=jnp.zeros(cross, kind),
        cross_v=jnp.zeros(cross, kind),
        cross_segments=jnp.zeros((batch, encoder_length), jnp.int32),
    )


def plan_writes(cache: Cache, segments: Array | None, T: int) -> tuple[Array, Array, Array]:
    """Choose where T new tokens per row go.

    Args:
        segments: [B, T] int32, 0 = padding; None = all real.

    Returns:
        (slots [B, T], default positions [B, T], new lengths [B]); a padding token's slot is out
        of range, so that its write is dropped.
    """
    B = cache.lengths.shape[0]
    real = jnp.ones((B, T), bool) if segments is None else segments > 0
    count = jnp.cumsum(real.astype(jnp.int32), axis=1)
    slots = cache.lengths[:, None] + count - 1
    lengths = jnp.minimum(cache.lengths + count[:, -1], cache.size)
    positions = jnp.maximum(slots, 0)
    return jnp.where(real, slots, cache.size), positions, lengths


def write(buffer: Array, new: Array, slots: Array, layer: Array | int | None = None) -> Array:
    """Scatter [B, T, ...] into [B, S, ...] (or into one layer of [L, B, S, ...]) at `slots`."""
    rows = jnp.arange(new.shape[0])[:, None]
    index = (rows, slots) if layer is None else (layer, rows, slots)
    return buffer.at[index].set(new.astype(buffer.dtype), mode="drop")

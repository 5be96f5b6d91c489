# SPDX-License-Identifier: Apache-2.0
"""The key-value cache of many running texts: a pool of pages, and attention that walks them.

Every text owns a list of page numbers. Attention takes a fixed number of keys at a time, as many
times as the longest running text needs: its cost follows what is in use, and its value for one
text depends neither on the pool's size nor on the other texts (blocks that a text does not see
change its running sums by exactly nothing).

Letters: L layers, G pages, P slots of a page, B rows, T tokens, K kv-heads, H head size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.core.sharding import shard
from llm.models.attention import MASKED, Request, Running, absorb, accumulate, adjusted, finish
from llm.models.config import TransformerConfig

Array = jax.Array
Buffers = dict[str, Array]

PAGE = 64  # slots; also the grain in which prompts are shared
BLOCK = 4  # pages that attention takes at a time


class Pages(NamedTuple):
    """The pages of all layers; int8 keys and values have one scale per slot and head."""

    k: Array  # [L, G, K, P, H]
    v: Array  # [L, G, K, P, H]
    k_scale: Array | None = None  # [L, G, K, P] float32
    v_scale: Array | None = None

    def buffers(self) -> Buffers:
        """Return the arrays by name, as the layers take them."""
        return {name: x for name, x in self._asdict().items() if x is not None}


class PagedCache(NamedTuple):
    """What a model's call continues: the pool and each row's pages in order.

    table: int32 [B, n], n a multiple of BLOCK; entries past a row's own are never read into a
    result, but must be valid page numbers.
    """

    pages: Pages
    table: Array


class Place(NamedTuple):
    """Where a call's tokens stand in their texts: what the layers need of a `PagedCache`."""

    table: Array  # [B, n] int32
    slots: Array  # [B, T] int32
    real: Array  # [B, T] bool; others are not written and see nothing


def init_pages(config: TransformerConfig, count: int, dtype: str = "") -> Pages:
    """Make empty pages; dtype "" = the compute dtype, "int8" quantises keys and values."""
    kind = jnp.dtype(dtype or config.dtype)
    shape = (config.n_layers, count, config.n_kv_heads, PAGE, config.head_dim)
    pages = Pages(jnp.zeros(shape, kind), jnp.zeros(shape, kind))
    if kind == jnp.int8:
        pages = pages._replace(
            k_scale=jnp.zeros(shape[:-1], jnp.float32), v_scale=jnp.zeros(shape[:-1], jnp.float32)
        )
    return constrain(pages)


def page_bytes(config: TransformerConfig, dtype: str = "") -> int:
    """Return the memory of one page, all layers."""
    kind = jnp.dtype(dtype or config.dtype)
    each = config.head_dim * kind.itemsize + (4 if kind == jnp.int8 else 0)
    return 2 * config.n_layers * config.n_kv_heads * PAGE * each


def constrain(pages: Pages) -> Pages:
    """Lay the pages over the mesh in force: heads are split, pages are whole."""
    axes = (None, None, "kv_heads", None, None)
    return jax.tree.map(lambda x: shard(x, *axes[: x.ndim]), pages)


def write(buffers: Buffers, layer: Array | int, place: Place, k: Array, v: Array) -> Buffers:
    """Store new keys and values [B, T, K, H] at their slots.

    Where T is a multiple of PAGE the first slot must begin a page; whole pages are stored then.
    """
    stored = dict(buffers)
    for name, new in (("k", k), ("v", v)):
        if f"{name}_scale" in buffers:
            new, scale = _quantize(new)
            stored[f"{name}_scale"] = _store(buffers[f"{name}_scale"], layer, place, scale)
        stored[name] = _store(buffers[name], layer, place, new)
    return stored


def _quantize(x: Array) -> tuple[Array, Array]:
    """Return int8 [..., H] and the scale [...] that makes the largest number 127."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127.0
    return jnp.round(x / scale[..., None]).astype(jnp.int8), scale


def _store(pool: Array, layer: Array | int, place: Place, new: Array) -> Array:
    """Scatter [B, T, K, ...] into [L, G, K, P, ...]; what is not real is dropped.

    Heads are indices, too: as a dimension of what is written they make a TPU's compiler lay all
    pages out anew, with slots before heads, around every write.
    """
    B, T = place.slots.shape
    if T % PAGE == 0:
        first = place.slots[:, ::PAGE]
        pages = _page_numbers(pool, place, first, place.real[:, ::PAGE])
        whole = new.reshape(B, T // PAGE, PAGE, *new.shape[2:])
        return pool.at[layer, pages].set(jnp.moveaxis(whole, 3, 2).astype(pool.dtype), mode="drop")
    pages = _page_numbers(pool, place, place.slots, place.real)
    heads = jnp.arange(new.shape[2])
    where = (layer, pages[..., None], heads, (place.slots % PAGE)[..., None])
    return pool.at[where].set(new.astype(pool.dtype), mode="drop")


def _page_numbers(pool: Array, place: Place, slots: Array, real: Array) -> Array:
    pages = jnp.take_along_axis(place.table, slots // PAGE, axis=1)
    return jnp.where(real, pages, pool.shape[1])


def attend(
    q: Array,  # [B, T, N, H]
    buffers: Buffers,
    layer: Array | int,
    place: Place,
    r: Request,
    before: tuple[Array, Array] | None = None,
) -> Array:  # [B, T, N, H]
    """Attend to the pages of each row.

    Args:
        r: its positions, mask, scale, window, soft-cap, bias and sinks; segments are set here.
        before: keys and values [J, K, H] at positions 0..J-1 that every query sees first.
    """
    B, T, N, H = q.shape
    K, S = buffers["k"].shape[2], BLOCK * PAGE
    shift = (r.q_positions - place.slots)[:, :1]  # virtual tokens before the text
    r = r._replace(q_segments=place.real.astype(jnp.int32), prefix=None, ordered=False)
    shape = (B, K, N // K, T, 1)
    state = Running(
        total=jnp.zeros(shape, jnp.float32),
        top=jnp.full(shape, MASKED, jnp.float32),
        out=jnp.zeros((*shape[:-1], H), jnp.float32),
    )
    if before is not None:
        state = _absorb_prefix(state, q, before, r)

    def block(i: Array, state: Running) -> Running:
        pages = jax.lax.dynamic_slice(place.table, (0, i * BLOCK), (B, BLOCK))
        keys, values = (_read(buffers, name, layer, pages, q.dtype) for name in ("k", "v"))
        slots = i * S + jnp.arange(S, dtype=jnp.int32)
        here = r._replace(
            k_positions=slots[None] + shift, k_segments=jnp.ones((B, S), jnp.int32), shared=False
        )
        return _absorb_pages(state, q, keys, values, here)

    last = jnp.max(jnp.where(place.real, place.slots, -1)) // S + 1
    first: Array | int = 0
    if r.window:
        nearest = jnp.min(jnp.where(place.real, place.slots, jnp.iinfo(jnp.int32).max))
        first = jnp.maximum(nearest - r.window + 1, 0) // S
    state = jax.lax.fori_loop(first, last, block, state)
    out = finish(state, r, K).astype(q.dtype).reshape(B, T, N, H)
    # Otherwise XLA transposes the output projection's weights to suit the layout of `out`.
    return jax.lax.optimization_barrier(out)


def _absorb_pages(state: Running, q: Array, k: Array, v: Array, r: Request) -> Running:
    """Add the keys and values [B, n, K, P, H] of n pages, multiplied as they lie in memory."""
    B, T, N, H = q.shape
    n, K, P = k.shape[1:4]
    if T >= P:  # less work then: lay out the few keys instead of the many products

        def joined(x: Array) -> Array:  # [B, n, K, P, H] -> [B, n P, K, H]
            return jnp.moveaxis(x, 2, 3).reshape(B, n * P, K, H)

        return absorb(state, q, joined(k), joined(v), r)
    grouped = q.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("BTKGH,BnKPH->BnKGTP", grouped, k, preferred_element_type=jnp.float32)
    logits = jnp.moveaxis(logits, 1, 4).reshape(B, K, N // K, T, n * P)

    def weigh(weights: Array) -> Array:
        split = jnp.moveaxis(weights.reshape(B, K, N // K, T, n, P), 4, 1).astype(v.dtype)
        each = jnp.einsum("BnKGTP,BnKPH->BnKGTH", split, v, preferred_element_type=jnp.float32)
        return jnp.sum(each, axis=1)

    return accumulate(state, adjusted(logits, r), weigh)


def _absorb_prefix(state: Running, q: Array, before: tuple[Array, Array], r: Request) -> Running:
    B, J = q.shape[0], before[0].shape[0]
    k, v = (jnp.broadcast_to(x[None].astype(q.dtype), (B, *x.shape)) for x in before)
    positions = jnp.broadcast_to(jnp.arange(J, dtype=jnp.int32)[None], (B, J))
    ones = jnp.ones((B, J), jnp.int32)
    return absorb(state, q, k, v, r._replace(k_positions=positions, k_segments=ones, shared=False))


def _read(buffers: Buffers, name: str, layer: Array | int, pages: Array, dtype: Any) -> Array:
    """Return pages [B, n, K, P, H] in the compute dtype."""
    x = buffers[name][layer, pages]
    if f"{name}_scale" in buffers:
        x = x.astype(jnp.float32) * buffers[f"{name}_scale"][layer, pages][..., None]
    return x.astype(dtype)

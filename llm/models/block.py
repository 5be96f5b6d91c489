# SPDX-License-Identifier: Apache-2.0
"""One transformer layer: attention, cross-attention if asked, feed-forward, and their norms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from llm.core.sharding import shard
from llm.models import paged, zigzag
from llm.models.attention import EVERYONE, Bias, Request, attention
from llm.models.cache import write
from llm.models.config import TransformerConfig
from llm.models.layers import Dense, Norm, drop_path, dropout, fold, param
from llm.models.mlp import MLP
from llm.models.moe import MoE
from llm.models.positions import alibi_bias, apply_rope, relative_bias

Array = jax.Array

# Sites of per-example randomness within a layer; each gets its own key.
_SITES = {"attention": 0, "cross": 1, "mlp": 2}
_UPDATES = 3  # those of low-rank updates follow


class Context(NamedTuple):
    """What every layer of a stack shares; None where it does not apply."""

    positions: Array  # [B, T] int32
    segments: Array | None  # [B, T] int32
    prefix: Array | None = None  # [B, S] bool
    keys: Array | None = None  # dropout keys [B]
    rope: tuple[Array, Array] | None = None  # 2 x [B, T, R/2]
    rope_local: tuple[Array, Array] | None = None
    relative: Array | None = None  # T5's table [buckets, N]
    slots: Array | None = None  # [B, T] where the cache is written; None = no cache
    k_positions: Array | None = None  # [B, S] of the cache
    k_segments: Array | None = None
    pages: paged.Place | None = None  # where a cache in pages is written and read
    encoded: Array | None = None  # [B, C, D]
    encoded_segments: Array | None = None  # [B, C]


class Layer(NamedTuple):
    """What differs between layers, scanned along with the parameters."""

    number: Array  # int32
    local: Array  # bool: attends within the window only
    prefix: tuple[Array, Array] | None = None  # keys and values [P, K, H] before the layer's own


Buffers = dict[str, Array]  # the cache's arrays, all layers: k, v (and cross_k, cross_v)


class Attention(nn.Module):
    """Project, encode positions, attend and project back."""

    config: TransformerConfig
    causal: bool = True
    cross: bool = False

    @nn.compact
    def __call__(
        self, x: Array, layer: Layer, context: Context, buffers: Buffers
    ) -> tuple[Array, Buffers]:  # [B, T, D] -> [B, T, D]
        c = self.config
        N, K, H, D = c.n_heads, c.n_kv_heads, c.head_dim, c.d_model
        keys = _update_keys(c, "cross" if self.cross else "attention", layer, context)
        q = Dense(c, "BTD,DNH->BTNH", (D, N, H), c.attention_bias, name="query")(x, keys)
        if c.qk_norm != "none":
            q = self._qk_norm("query_norm", q)
        if context.rope is not None and not self.cross:
            q = apply_rope(q, *_rope(layer, context))
        q = shard(q, "batch", "length", "heads", "head_dim")
        if self.cross and context.encoded is None:
            k, v = buffers["cross_k"][layer.number], buffers["cross_v"][layer.number]
        else:
            source = context.encoded if self.cross else x
            assert source is not None
            k = Dense(c, "BTD,DKH->BTKH", (D, K, H), c.attention_bias, name="key")(source, keys)
            v = Dense(c, "BTD,DKH->BTKH", (D, K, H), c.attention_bias, name="value")(source, keys)
            if c.qk_norm != "none":
                k = self._qk_norm("key_norm", k)
            if context.rope is not None and not self.cross:
                k = apply_rope(k, *_rope(layer, context))
            k, v, buffers = self._through_cache(k, v, layer, context, buffers)
        k = shard(k, "batch", "length", "kv_heads", "head_dim")
        v = shard(v, "batch", "length", "kv_heads", "head_dim")
        if context.pages is not None and not self.cross:
            out = self._attend_pages(q, buffers, layer, context, context.pages)
        else:
            out = self._attend(q, k, v, layer, context)
        out = checkpoint_name(shard(out, "batch", "length", "heads", "head_dim"), "context")
        project = Dense(
            c, "BTNH,NHD->BTD", (N, H, D), c.attention_out_bias, "residual", name="output"
        )
        return project(out, keys), buffers

    def _qk_norm(self, name: str, x: Array) -> Array:
        if self.config.qk_norm == "head":
            return Norm(self.config, (x.shape[-1],), name=name)(x)
        axes = ("heads" if name == "query_norm" else "kv_heads", "head_dim")
        return Norm(self.config, x.shape[-2:], axes, name=name)(x)

    def _through_cache(
        self, k: Array, v: Array, layer: Layer, context: Context, buffers: Buffers
    ) -> tuple[Array, Array, Buffers]:
        """Write new keys and values and return those to attend to."""
        if self.cross:
            if "cross_k" in buffers:
                filled = {
                    "cross_k": buffers["cross_k"].at[layer.number].set(k),
                    "cross_v": buffers["cross_v"].at[layer.number].set(v),
                }
                buffers = {**buffers, **filled}
            return k, v, buffers
        if context.pages is not None:
            return k, v, paged.write(buffers, layer.number, context.pages, k, v)
        if context.slots is None:
            return k, v, buffers
        written = {
            "k": write(buffers["k"], k, context.slots, layer.number),
            "v": write(buffers["v"], v, context.slots, layer.number),
        }
        buffers = {**buffers, **written}
        dtype = k.dtype
        return (
            written["k"][layer.number].astype(dtype),
            written["v"][layer.number].astype(dtype),
            buffers,
        )

    def _attend(self, q: Array, k: Array, v: Array, layer: Layer, context: Context) -> Array:
        c = self.config
        sinks = self._sinks()
        cached = context.slots is not None and not self.cross
        q_segments, k_segments = context.segments, context.segments
        k_positions = context.positions
        if cached:
            assert context.k_positions is not None
            k_positions, k_segments = context.k_positions, context.k_segments
            if q_segments is None:
                q_segments = jnp.ones_like(context.positions)
            q_segments = jnp.minimum(q_segments, 1)
        if self.cross:
            k_positions = jnp.broadcast_to(jnp.arange(k.shape[1])[None], k.shape[:2])
            k_segments = context.encoded_segments
            if k_segments is not None and q_segments is None:
                q_segments = jnp.ones_like(context.positions)
        before, seen = self._prefix(layer), context.prefix
        if before is not None:
            k, v, k_positions = prepend(before, k, v, k_positions)
            if q_segments is None:
                q_segments = jnp.ones_like(context.positions)
            k_segments = q_segments if k_segments is None else k_segments
            k_segments = jnp.pad(
                k_segments, ((0, 0), (before[0].shape[0], 0)), constant_values=EVERYONE
            )
            if seen is not None:
                seen = jnp.pad(seen, ((0, 0), (before[0].shape[0], 0)), constant_values=True)

        def attend(window: int) -> Array:
            return attention(
                q,
                k,
                v,
                q_positions=context.positions,
                k_positions=k_positions,
                q_segments=q_segments,
                k_segments=k_segments,
                causal=self.causal and not self.cross,
                window=window,
                softcap=c.attention_softcap,
                scale=c.attention_scale or None,
                backend=c.attention,
                bias=self._bias(context),
                sinks=sinks,
                prefix=seen,
                ordered=not (cached or self.cross or zigzag.active()) and before is None,
                shared=before is not None,
                chunk=c.attention_chunk,
            )

        return attend(0) if self.cross else _by_window(c, layer, attend)

    def _attend_pages(
        self, q: Array, buffers: Buffers, layer: Layer, context: Context, place: paged.Place
    ) -> Array:
        c = self.config
        sinks, before = self._sinks(), self._prefix(layer)

        def attend(window: int) -> Array:
            request = Request(
                q_positions=context.positions,
                k_positions=context.positions,
                q_segments=None,
                k_segments=None,
                causal=True,
                window=window,
                softcap=c.attention_softcap,
                scale=c.attention_scale or c.head_dim**-0.5,
                bias=self._bias(context),
                sinks=sinks,
                prefix=None,
                ordered=False,
                shared=False,
                chunk=c.attention_chunk,
            )
            return paged.attend(q, buffers, layer.number, place, request, before)

        return _by_window(c, layer, attend)

    def _sinks(self) -> Array | None:
        c = self.config
        if not c.attention_sinks:
            return None
        return param(self, "sinks", jax.nn.initializers.zeros, (c.n_heads,), ("heads",))

    def _prefix(self, layer: Layer) -> tuple[Array, Array] | None:
        """Return keys and values [P, K, H] that come before all others, if there are some."""
        c = self.config
        if self.cross or not c.adapter.prefixes(*self.path):
            return None if self.cross else layer.prefix
        shape, axes = (c.adapter.length, c.n_kv_heads, c.head_dim), (None, "kv_heads", "head_dim")
        init = jax.nn.initializers.normal(c.init_std)
        keys = param(self, "prefix_keys", init, shape, axes)
        return keys, param(self, "prefix_values", init, shape, axes)

    def _bias(self, context: Context) -> Bias | None:
        c = self.config
        if self.cross:
            return None
        if c.position == "alibi":
            return lambda q, k: alibi_bias(c.n_heads, q, k)
        table = context.relative
        if table is None:
            return None
        return lambda q, k: relative_bias(table, c.relative_max_distance, not self.causal, q, k)


def _by_window(c: TransformerConfig, layer: Layer, attend: Callable[[int], Array]) -> Array:
    """Attend within the layer's window, where it has one."""
    kinds = {c.is_local(i) for i in range(c.n_layers)}
    if kinds == {False}:
        return attend(0)
    if kinds == {True}:
        return attend(c.window)
    # The window stays static in each branch, which fused kernels need; one branch runs.
    return jax.lax.cond(layer.local, lambda: attend(c.window), lambda: attend(0))


def prepend(
    before: tuple[Array, Array], k: Array, v: Array, positions: Array
) -> tuple[Array, Array, Array]:
    """Put a prefix [P, K, H], the same for all rows, at positions 0.. before keys and values."""
    P, B = before[0].shape[0], k.shape[0]
    wide = [jnp.broadcast_to(x[None].astype(k.dtype), (B, *x.shape)) for x in before]
    first = jnp.broadcast_to(jnp.arange(P, dtype=positions.dtype)[None], (B, P))
    return (
        jnp.concatenate([wide[0], k], axis=1),
        jnp.concatenate([wide[1], v], axis=1),
        jnp.concatenate([first, positions], axis=1),
    )


def _update_keys(
    config: TransformerConfig, site: str, layer: Layer, context: Context
) -> Array | None:
    """Return the dropout keys [B] of a sublayer's low-rank updates."""
    if context.keys is None or not config.adapter.dropout:
        return None
    return fold(fold(context.keys, layer.number), _UPDATES + _SITES[site])


def _rope(layer: Layer, context: Context) -> tuple[Array, Array]:
    assert context.rope is not None
    if context.rope_local is None:
        return context.rope
    cos, sin = (
        jnp.where(layer.local, near, far)
        for near, far in zip(context.rope_local, context.rope, strict=True)
    )
    return cos, sin


class Block(nn.Module):
    """Apply one layer to the carry (residual state, cache buffers); a body for `nn.scan`."""

    config: TransformerConfig
    causal: bool = True
    cross: bool = False

    @nn.compact
    def __call__(
        self, carry: tuple[Array, Buffers], layer: Layer, context: Context
    ) -> tuple[tuple[Array, Buffers], dict[str, Any]]:
        c = self.config
        x, buffers = carry
        x = checkpoint_name(x, "residual")
        if c.parallel_block != "none":
            return self._parallel(x, buffers, layer, context)
        h, buffers = Attention(c, self.causal, name="attention")(
            self._before("attention", x), layer, context, buffers
        )
        x = self._add("attention", x, h, layer, context)
        if self.cross:
            h, buffers = Attention(c, self.causal, cross=True, name="cross")(
                self._before("cross", x), layer, context, buffers
            )
            x = self._add("cross", x, h, layer, context)
        h, aux = self._feed_forward(self._before("mlp", x), layer, context)
        x = self._add("mlp", x, h, layer, context)
        return (x, buffers), aux

    def _parallel(self, x: Array, buffers: Buffers, layer: Layer, context: Context) -> Any:
        # Attention and feed-forward read the same input and are summed (GPT-J, GPT-NeoX).
        c = self.config
        normed = self._before("attention", x)
        attended, buffers = Attention(c, self.causal, name="attention")(
            normed, layer, context, buffers
        )
        own = self._before("mlp", x) if c.parallel_block == "two_norms" else normed
        fed, aux = self._feed_forward(own, layer, context)
        x = self._add("attention", x, attended, layer, context)
        x = self._add("mlp", x, fed, layer, context)
        return (x, buffers), aux

    def _feed_forward(
        self, x: Array, layer: Layer, context: Context
    ) -> tuple[Array, dict[str, Any]]:
        keys = _update_keys(self.config, "mlp", layer, context)
        if self.config.n_experts:
            return MoE(self.config, name="moe")(x, context.segments, keys)
        return MLP(self.config, name="mlp")(x, keys), {}

    def _before(self, site: str, x: Array) -> Array:
        if self.config.norm_placement in ("pre", "sandwich"):
            return Norm(self.config, (self.config.d_model,), name=f"{site}_norm")(x)
        return x

    def _add(self, site: str, x: Array, h: Array, layer: Layer, context: Context) -> Array:
        """Add a sublayer's output to the residual state, with its dropout and norm."""
        c = self.config
        h = shard(h, "batch", "sequence", None)
        norm = None
        if c.norm_placement != "pre":
            norm = Norm(c, (c.d_model,), name=f"{site}_post_norm")
        if norm is not None and c.norm_placement in ("sandwich", "output"):
            h = norm(h)
        if context.keys is not None:
            keys = fold(fold(context.keys, layer.number), _SITES[site])
            h = dropout(h, c.dropout, keys)
            if c.stochastic_depth:
                rate = c.stochastic_depth * (layer.number + 1) / c.n_layers
                h = drop_path(h, rate, fold(keys, 1))
        x = x + h
        if norm is not None and c.norm_placement == "post":
            x = norm(x)
        return shard(x, "batch", "sequence", None)

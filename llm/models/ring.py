# SPDX-License-Identifier: Apache-2.0
"""Ring attention: the sequence is split over devices, keys and values travel round (2310.01889).

Every device keeps its queries. In each of c turns it attends to the keys it has, with an online
softmax in float32, while they are passed on to the next device. Masks are made of positions and
segments, which travel along: causal, windowed, packed and zigzag rows need nothing else. Blocks in
which no query sees a key are skipped, so that packing and windows save work. Backward the keys go
round once more, their gradients with them: no device ever holds more than its share.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.core import sharding, shards
from llm.models import attention as plain

Array = jax.Array


class Keys(NamedTuple):
    """What travels."""

    k: Array  # [B, S, K, H]
    v: Array  # [B, S, K, H]
    positions: Array  # [B, S]
    segments: Array  # [B, S]
    prefix: Array  # [B, S] bool


class Queries(NamedTuple):
    """What stays."""

    q: Array  # [B, T, N, H]
    positions: Array  # [B, T]
    segments: Array  # [B, T]


def obstacle(q: Array, k: Array, r: Any) -> str:
    """Say why a request cannot be served by the ring ("" = it can)."""
    parts = sharding.parts("length")
    reasons = {
        "mesh.context is 1": parts == 1,
        "it has no position bias": r.bias is not None,
        "queries and keys are not both split over mesh.context": bool(
            q.shape[1] % parts or k.shape[1] % parts
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def ring(q: Array, k: Array, v: Array, r: Any) -> Array:
    """Attend over a sequence that is split over mesh.context.

    Raises:
        ConfigError: the request cannot be served.
    """
    plain.refuse_obstacle("ring", obstacle(q, k, r))
    packed = r.q_segments is not None and r.k_segments is not None
    zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
    arrays = [
        q,
        r.q_positions,
        r.q_segments if packed else zeros(q.shape[:2]),
        k,
        v,
        r.k_positions,
        r.k_segments if packed else zeros(k.shape[:2]),
        jnp.zeros(k.shape[:2], bool) if r.prefix is None else r.prefix,
    ]
    row = ("batch", "length")
    heads, kv_heads = (*row, "heads", "head_dim"), (*row, "kv_heads", "head_dim")
    (axis,) = sharding.split_over("length")
    turns = sharding.parts("length")
    bare = r._replace(q_positions=None, k_positions=None, q_segments=None, k_segments=None)
    bare = bare._replace(prefix=r.prefix is not None, sinks=None)

    def local(*own: Array) -> tuple[Array, Array]:
        return _attend(Setting(bare, axis, turns), Queries(*own[:3]), Keys(*own[3:]))

    out, total = shards.on_shards(
        local,
        [heads, row, row, kv_heads, kv_heads, row, row, row],
        [heads, (*row, "heads")],
    )(*arrays)
    if r.sinks is not None:  # a logit that takes its share of probability and gives nothing
        share = jax.nn.sigmoid(total - r.sinks.astype(jnp.float32)[None, None])
        out = out * share[..., None]
    return out.astype(q.dtype)


class Setting(NamedTuple):
    """What is known when a program is made: the request without arrays, mesh axis and turns."""

    request: Any
    axis: str
    turns: int

    def at(self, queries: Queries, keys: Keys) -> Any:
        """Return the request for some queries and keys."""
        return self.request._replace(
            q_positions=queries.positions,
            k_positions=keys.positions,
            q_segments=queries.segments,
            k_segments=keys.segments,
            prefix=keys.prefix if self.request.prefix else None,
        )


def _pass_on(setting: Setting, tree: Any) -> Any:
    """Send to the next device of the ring."""
    moves = [(i, (i + 1) % setting.turns) for i in range(setting.turns)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, setting.axis, moves), tree)


def _chunks(tree: Any, limit: int) -> Any:
    """Cut [B, T, ...] into [n, B, C, ...] with C at most `limit`, and two pieces at least."""
    length = jax.tree.leaves(tree)[0].shape[1]
    size = next(c for c in range(min(limit, max(length // 2, 1)), 0, -1) if length % c == 0)

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], length // size, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)


def _joined(tree: Any) -> Any:
    """Undo `_chunks`."""

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    return jax.tree.map(join, tree)


def _seen(setting: Setting, queries: Queries, keys: Keys) -> Array:
    return jnp.any(plain.visible(setting.at(queries, keys)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(setting: Setting, queries: Queries, keys: Keys) -> tuple[Array, Array]:
    """Return float32 values [B, T, N, H] and log-sums of exponentials [B, T, N] of own queries."""
    return _rounds(setting, queries, keys)


def _forward(setting: Setting, queries: Queries, keys: Keys) -> Any:
    # Positions are the same in every layer. Differentiating a scan over layers, JAX would make the
    # masks of all blocks once, before the first, and keep them: memory quadratic in the length.
    # After the barrier they are of the layer, like its queries.
    out, total = _rounds(setting, *jax.lax.optimization_barrier((queries, keys)))
    return (out, total), (queries, keys, out, total)


def _rounds(setting: Setting, queries: Queries, keys: Keys) -> tuple[Array, Array]:
    limit = setting.request.chunk
    cut = _chunks(queries, limit)
    n, B, C, N, H = cut.q.shape
    K = keys.k.shape[2]
    shape = (n, B, K, N // K, C)
    state = plain.Running(
        total=jnp.zeros((*shape, 1), jnp.float32),
        top=jnp.full((*shape, 1), plain.MASKED, jnp.float32),
        out=jnp.zeros((*shape, H), jnp.float32),
    )

    def absorb(state: Any, keys: Keys) -> Any:
        pieces = _chunks(keys, limit)

        def one(chunk: Any) -> Any:
            running, mine = chunk

            def take(running: Any, piece: Keys) -> tuple[Any, None]:
                def update(old: Any) -> Any:
                    return plain.absorb(old, mine.q, piece.k, piece.v, setting.at(mine, piece))

                seen = _seen(setting, mine, piece)
                return jax.lax.cond(seen, update, lambda old: old, running), None

            return jax.lax.scan(take, running, pieces)[0]

        return jax.lax.map(one, (state, cut))

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        state, keys = carry
        following = _pass_on(setting, keys)  # under way while this turn computes
        return (absorb(state, keys), following), None

    (state, last), _ = jax.lax.scan(turn, (state, keys), None, length=setting.turns - 1)
    state = absorb(state, last)
    out = state.out / jnp.maximum(state.total, 1e-30)
    total = jnp.where(state.total > 0, state.top + jnp.log(jnp.maximum(state.total, 1e-30)), 0.0)
    out, total = (_joined(_by_head(x)) for x in (out, total))
    return out, total[..., 0]


def _by_head(x: Array) -> Array:  # [n, B, K, G, C, X] -> [n, B, C, N, X]
    x = jnp.moveaxis(x, 4, 2)
    return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _shares(
    setting: Setting, q: Array, k: Array, v: Array, total: Array, queries: Queries, keys: Keys
) -> tuple[Array, Array]:
    """Return what a block of keys gives of the value, and of the probability, float32.

    `total` [B, C, N] is held fixed: then the whole value is the sum of these over blocks.
    """
    B, C, N, _ = q.shape
    K = k.shape[2]
    logits = plain.masked_logits(q, k, setting.at(queries, keys))
    fixed = jnp.moveaxis(total.reshape(B, C, K, N // K), 1, 3)[..., None]
    weights = jnp.where(logits > plain.MASKED / 2, jnp.exp(logits - fixed), 0.0)
    value = jnp.einsum(
        "BKGTS,BSKH->BTKGH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    share = jnp.moveaxis(jnp.sum(weights, axis=-1), 3, 1)
    return value.reshape(q.shape), share.reshape(B, C, N)


def _backward(setting: Setting, kept: Any, cotangents: Any) -> Any:
    """Let the keys go round again. With the log-sum L fixed, the value is a sum over keys of
    p = exp(logit - L); what L adds to the gradient is -(value · cotangent), and its own cotangent,
    on every p: so a block needs nothing of the others."""
    queries, keys, out, total = kept
    d_out, d_total = cotangents
    d_share = d_total - jnp.sum(d_out * out, axis=-1)
    limit = setting.request.chunk
    own = _chunks((queries, total, d_out, d_share), limit)

    def absorb(d_q: Array, keys: Keys, d_k: Array, d_v: Array) -> tuple[Array, Array, Array]:
        pieces = _chunks((keys, d_k, d_v), limit)

        def one(d_q: Array, piece: Any) -> tuple[Array, Any]:
            there, d_k, d_v = piece

            def take(carry: Any, chunk: Any) -> tuple[Any, Array]:
                (mine, total, d_out, d_share), d_q = chunk

                def update(carry: Any) -> Any:
                    d_k, d_v, d_q = carry
                    block = functools.partial(
                        _shares, setting, total=total, queries=mine, keys=there
                    )
                    _, pull = jax.vjp(block, mine.q, there.k, there.v)
                    more_q, more_k, more_v = pull((d_out, d_share))
                    return d_k + more_k, d_v + more_v, d_q + more_q

                seen = _seen(setting, mine, there)
                d_k, d_v, d_q = jax.lax.cond(seen, update, lambda c: c, (*carry, d_q))
                return (d_k, d_v), d_q

            (d_k, d_v), d_q = jax.lax.scan(take, (d_k, d_v), (own, d_q))
            return d_q, (d_k, d_v)

        d_q, found = jax.lax.scan(one, d_q, pieces)
        return d_q, *_joined(found)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        d_q, keys, d_k, d_v = carry
        following = _pass_on(setting, keys)
        d_q, d_k, d_v = absorb(d_q, keys, d_k, d_v)
        d_k, d_v = _pass_on(setting, (d_k, d_v))  # after the last turn they are home
        return (d_q, following, d_k, d_v), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (own[0].q, keys.k, keys.v)]
    (d_q, _, d_k, d_v), _ = jax.lax.scan(
        turn, (zeros[0], keys, zeros[1], zeros[2]), None, length=setting.turns
    )
    none: Any = None  # integers have no gradient
    return (
        Queries(_joined(d_q).astype(queries.q.dtype), none, none),
        Keys(d_k.astype(keys.k.dtype), d_v.astype(keys.v.dtype), none, none, none),
    )


_attend.defvjp(_forward, _backward)

# SPDX-License-Identifier: Apache-2.0
"""Attention as a function of arrays, with several backends that agree or refuse.

Letters: B batch, T queries, S keys, N heads, K kv-heads, G = N / K query heads per kv-head, H head.
A query whose keys are all masked gets zeros from every backend.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm.core import sharding
from llm.core.sharding import current_layout
from llm.errors import ConfigError
from llm.models.config import unknown
from llm.models.splash import obstacle, splash

Array = jax.Array
Bias = Callable[[Array, Array], Array]  # ([B, T], [B, S] positions) -> [B, N, T, S] float32

EVERYONE = -2  # the segment of keys that every query sees, as of a prefix
MASKED = -1e30  # finite: minus infinity would make a fully masked row NaN


class Request(NamedTuple):
    """What is asked of a backend besides the arrays q, k, v."""

    q_positions: Array  # [B, T] int32
    k_positions: Array  # [B, S] int32
    q_segments: Array | None  # [B, T] int32; a pair of unequal segments is masked; None = all one
    k_segments: Array | None  # [B, S] int32
    causal: bool
    window: int  # keys nearer than this many positions, itself included; 0 = all
    softcap: float  # logits become cap * tanh(logits / cap); 0 = none
    scale: float
    bias: Bias | None  # added to the logits
    sinks: Array | None  # [N] float32: a logit that takes probability and gives nothing
    prefix: Array | None  # [B, S] bool: keys visible to every query of their segment (prefix-LM)
    ordered: bool  # T == S and row order is position order within each segment
    shared: bool  # keys of the segment EVERYONE may be among k_segments
    chunk: int


def platform() -> str:
    """Return the platform compiled for: that of the mesh in force (a described TPU pod as well)."""
    layout = current_layout()
    if layout is None:
        return jax.default_backend()
    return layout.mesh.devices.flat[0].platform


def visible(r: Request) -> Array:  # -> [B, T, S] bool
    """Tell which keys each query may see."""
    distance = r.q_positions[:, :, None] - r.k_positions[:, None, :]
    seen = jnp.ones(distance.shape, bool)
    if r.causal:
        seen = distance >= 0
        if r.prefix is not None:
            seen = seen | r.prefix[:, None, :]
    if r.window:
        seen = seen & (jnp.abs(distance) < r.window)
    if r.q_segments is not None and r.k_segments is not None:
        seen = seen & (r.q_segments[:, :, None] == r.k_segments[:, None, :])
        if r.shared:
            seen = seen | (r.k_segments == EVERYONE)[:, None, :]
    return seen


def masked_logits(q: Array, k: Array, r: Request) -> Array:  # -> [B, K, G, T, S] float32, masked
    B, T, N, H = q.shape
    K = k.shape[2]
    # Queries in the products' order: XLA would otherwise transpose the many products.
    grouped = jnp.moveaxis(q.reshape(B, T, K, N // K, H), 1, 3)
    logits = jnp.einsum("BKGTH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32)
    return adjusted(logits, r)


def adjusted(logits: Array, r: Request) -> Array:
    """Scale, cap, bias and mask the products [B, K, G, T, S] of queries and keys."""
    K, G, T, S = logits.shape[1:]
    logits = logits * r.scale
    if r.softcap:
        logits = r.softcap * jnp.tanh(logits / r.softcap)
    if r.bias is not None:
        logits = logits + r.bias(r.q_positions, r.k_positions).reshape(-1, K, G, T, S)
    return jnp.where(visible(r)[:, None, None], logits, MASKED)


def _sink_logits(r: Request, K: int) -> Array:  # -> [1, K, G, 1, 1]
    assert r.sinks is not None
    return r.sinks.astype(jnp.float32).reshape(1, K, -1, 1, 1)


def xla(q: Array, k: Array, v: Array, r: Request) -> Array:
    """Attend with the whole matrix in memory and a float32 softmax; the reference backend."""
    logits = masked_logits(q, k, r)
    top = jnp.max(logits, axis=-1, keepdims=True)
    if r.sinks is not None:
        top = jnp.maximum(top, _sink_logits(r, k.shape[2]))
    top = jax.lax.stop_gradient(top)
    weights = jnp.where(logits > MASKED / 2, jnp.exp(logits - top), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if r.sinks is not None:
        total = total + jnp.exp(_sink_logits(r, k.shape[2]) - top)
    probabilities = (weights / jnp.maximum(total, 1e-30)).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v).reshape(q.shape)


def dot_product(q: Array, k: Array, v: Array, r: Request) -> Array:
    """Attend with `jax.nn.dot_product_attention` (cuDNN's fused kernel on GPU in 16 bits).

    Raises:
        ConfigError: a soft-cap or sinks are asked for, which the function does not have.
    """
    _refuse("dot_product", r, ("softcap", "sinks"))
    fused = platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16)
    plain = r.ordered and r.q_segments is None and r.prefix is None and r.bias is None and r.causal
    if plain:  # no mask array at all: the kernel skips what it need not compute
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            scale=r.scale,
            is_causal=True,
            local_window_size=(r.window - 1, 0) if r.window else None,
            implementation="cudnn" if fused else None,
        )
    seen = visible(r)
    bias = None if r.bias is None else r.bias(r.q_positions, r.k_positions).astype(q.dtype)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=bias,
        mask=seen[:, None],
        scale=r.scale,
        implementation="cudnn" if fused else None,
    )
    return jnp.where(jnp.any(seen, axis=-1)[:, :, None, None], out, 0)


class Running(NamedTuple):
    """The online softmax of one block of queries (arXiv:2112.05682), all float32."""

    total: Array  # [B, K, G, T, 1]
    top: Array  # [B, K, G, T, 1]
    out: Array  # [B, K, G, T, H]


def absorb(state: Running, q: Array, k: Array, v: Array, r: Request) -> Running:
    """Add keys and values [B, S, K, H] to the running softmax."""

    def weigh(weights: Array) -> Array:
        return jnp.einsum(
            "BKGTS,BSKH->BKGTH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )

    return accumulate(state, masked_logits(q, k, r), weigh)


def accumulate(state: Running, logits: Array, weigh: Callable[[Array], Array]) -> Running:
    """Add masked logits [B, K, G, T, S]; `weigh` sums the values with weights of that shape."""
    top = jax.lax.stop_gradient(jnp.maximum(state.top, jnp.max(logits, axis=-1, keepdims=True)))
    weights = jnp.where(logits > MASKED / 2, jnp.exp(logits - top), 0.0)
    old = jnp.exp(state.top - top)
    return Running(
        total=state.total * old + jnp.sum(weights, axis=-1, keepdims=True),
        top=top,
        out=state.out * old + weigh(weights),
    )


def _in_chunks(x: Array, chunk: int, fill: int | bool) -> Array:  # [B, T, ...] -> [n, B, C, ...]
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, -x.shape[1] % chunk)
    x = jnp.pad(x, padding, constant_values=fill)
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)


def chunked(q: Array, k: Array, v: Array, r: Request) -> Array:
    """Attend block by block: memory grows with T + S, not with T * S; exact gradients.

    Each block of queries is recomputed in the backward pass, so only its inputs are kept.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    C, D = min(r.chunk, T), min(r.chunk, S)
    one = r.q_segments is None or r.k_segments is None
    q_segments = jnp.zeros((B, T), jnp.int32) if one else r.q_segments
    k_segments = jnp.zeros((B, S), jnp.int32) if one else r.k_segments
    assert q_segments is not None and k_segments is not None
    prefix = jnp.zeros((B, S), bool) if r.prefix is None else r.prefix
    keys = (
        jnp.arange(-(-S // D)),
        _in_chunks(k, D, 0),
        _in_chunks(v, D, 0),
        _in_chunks(r.k_positions, D, 0),
        _in_chunks(k_segments, D, -1),  # the padding's own segment: no query has it
        _in_chunks(prefix, D, False),
    )

    def one_block(block):  # (index, q, positions, segments) -> [B, C, N, H]
        i, q_c, q_pos, q_seg = block

        def take(state: Running, key_block) -> tuple[Running, None]:
            j, k_c, v_c, k_pos, k_seg, pre = key_block
            here = r._replace(
                q_positions=q_pos,
                k_positions=k_pos,
                q_segments=q_seg,
                k_segments=k_seg,
                prefix=None if r.prefix is None else pre,
            )
            if not (r.ordered and r.causal and r.prefix is None):
                return absorb(state, q_c, k_c, v_c, here), None
            past = j * D <= (i + 1) * C - 1
            if r.window:
                past = past & ((j + 1) * D > i * C - r.window)

            def update(running: Running) -> Running:
                return absorb(running, q_c, k_c, v_c, here)

            return jax.lax.cond(past, update, lambda running: running, state), None

        shape = (B, K, N // K, C, 1)
        state = Running(
            total=jnp.zeros(shape, jnp.float32),
            top=jnp.full(shape, MASKED, jnp.float32),
            out=jnp.zeros((*shape[:-1], H), jnp.float32),
        )
        state, _ = jax.lax.scan(jax.checkpoint(take), state, keys)
        return finish(state, r, K).astype(q.dtype).reshape(B, C, N, H)

    blocks = (
        jnp.arange(-(-T // C)),
        _in_chunks(q, C, 0),
        _in_chunks(r.q_positions, C, 0),
        _in_chunks(q_segments, C, 0),
    )
    out = jax.lax.map(jax.checkpoint(one_block), blocks)  # [n, B, C, N, H]
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, H)[:, :T]


def finish(state: Running, r: Request, K: int) -> Array:  # -> [B, C, K, G, H]
    """Add the sinks and divide: the attention's value."""
    total, out = state.total, state.out
    if r.sinks is not None:
        # Rescale to the larger of the two maxima, so that neither exponential overflows.
        top = jax.lax.stop_gradient(jnp.maximum(state.top, _sink_logits(r, K)))
        old = jnp.exp(state.top - top)
        out = out * old
        total = total * old + jnp.exp(_sink_logits(r, K) - top)
    return jnp.moveaxis(out / jnp.maximum(total, 1e-30), 3, 1)


def _refuse(backend: str, r: Request, features: tuple[str, ...]) -> None:
    present = {"softcap": r.softcap != 0.0, "sinks": r.sinks is not None}
    asked = [name for name in features if present[name]]
    if asked:
        raise ConfigError(
            f"The attention backend {backend!r} has no {' or '.join(asked)}.",
            "Use model.attention='xla', 'chunked' or 'auto'.",
        )


def refuse_obstacle(backend: str, reason: str) -> None:
    """Raise a ConfigError if there is a reason why a backend cannot be used."""
    if reason:
        raise ConfigError(
            f"The attention backend {backend!r} cannot be used: {reason}.",
            "Use model.attention='auto' (or 'xla', 'chunked').",
        )


def _ring(q: Array, k: Array, v: Array, r: Request) -> Array:
    """Attend over a sequence that is split over devices; see `llm.models.ring`."""
    from llm.models.ring import ring

    return ring(q, k, v, r)


BACKENDS: dict[str, Callable[[Array, Array, Array, Request], Array]] = {
    "xla": xla,
    "dot_product": dot_product,
    "chunked": chunked,
    "splash": splash,
    "ring": _ring,
}

WHOLE_MATRIX = 2048 * 2048  # queries times keys up to which "auto" keeps the matrix in memory


def choose(q: Array, k: Array, r: Request) -> str:
    """Pick what "auto" stands for: the platform's fused backend where it does what is asked."""
    from llm.models import ring

    where = platform()
    if sharding.parts("length") > 1 and not ring.obstacle(q, k, r):
        return "ring"
    if where == "tpu" and not obstacle(q, k, r, where):
        return "splash"
    if where == "gpu" and r.softcap == 0 and r.sinks is None and q.dtype != jnp.float32:
        return "dot_product"
    return "xla" if q.shape[1] * k.shape[1] <= WHOLE_MATRIX else "chunked"


def attention(
    q: Array,  # [B, T, N, H]
    k: Array,  # [B, S, K, H]
    v: Array,  # [B, S, K, H]
    *,
    q_positions: Array,
    k_positions: Array,
    q_segments: Array | None = None,
    k_segments: Array | None = None,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    scale: float | None = None,
    backend: str = "auto",
    bias: Bias | None = None,
    sinks: Array | None = None,
    prefix: Array | None = None,
    ordered: bool = False,
    shared: bool = False,
    chunk: int = 512,
) -> Array:  # [B, T, N, H]
    """Attend queries to keys; see `Request` for what each argument means.

    Raises:
        ConfigError: the backend is unknown or cannot do what is asked.
    """
    request = Request(
        q_positions=q_positions,
        k_positions=k_positions,
        q_segments=q_segments,
        k_segments=k_segments,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        bias=bias,
        sinks=sinks,
        prefix=prefix,
        ordered=ordered,
        shared=shared,
        chunk=chunk,
    )
    name = choose(q, k, request) if backend == "auto" else backend
    if name not in BACKENDS:
        raise unknown("model.attention", name, ["auto", *BACKENDS])
    return BACKENDS[name](q, k, v, request)

# SPDX-License-Identifier: Apache-2.0
"""The TPU backend of attention: JAX's Pallas splash kernel, split over the mesh by shard_map."""

from typing import Any

import jax
import jax.numpy as jnp

from llm.core import shards
from llm.core.sharding import current_layout
from llm.errors import ConfigError

Array = jax.Array

LANES = 128  # the kernel's blocks are multiples of this


def obstacle(q: Array, k: Array, r: Any, platform: str) -> str:
    """Say why the kernel cannot serve a request ("" = it can).

    It knows rows, not positions: causality and windows hold because rows are in position order
    within a segment. Every query must see a key, which self-attention guarantees.
    """
    T, N, K = q.shape[1], q.shape[2], k.shape[2]
    layout = current_layout()
    tensor = 1 if layout is None else layout.mesh.shape.get("tensor", 1)
    context = 1 if layout is None else layout.mesh.shape.get("context", 1)
    reasons = {
        f"it runs on TPU, not on {platform}": platform != "tpu",
        "it has no position bias": r.bias is not None,
        "it has no attention sinks here": r.sinks is not None,
        "it has no prefix mask": r.prefix is not None,
        "it serves self-attention without a cache": not r.ordered,
        f"the length {T} is not a multiple of {LANES}": T % LANES != 0,
        "its sequence is not split over mesh.context": context > 1,
        f"{K} kv-heads do not divide over mesh.tensor={tensor}": K % tensor != 0,
        f"{N} heads do not divide over mesh.tensor={tensor}": N % tensor != 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _block(T: int) -> int:
    return next(size for size in (512, 256, LANES) if T % size == 0)


def _kernel(heads: int, T: int, r: Any, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    one: Any = splash_attention_mask.FullMask((T, T))
    if r.window:
        ahead = 0 if r.causal else r.window - 1
        one = splash_attention_mask.LocalMask((T, T), (r.window - 1, ahead), 0)
    elif r.causal:
        one = splash_attention_mask.CausalMask((T, T))
    size = _block(T)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    return splash_attention_kernel.make_splash_mha_single_device(
        mask=splash_attention_mask.MultiHeadMask([one] * heads),
        block_sizes=blocks,
        attn_logits_soft_cap=r.softcap or None,
        residual_checkpoint_name="context",  # what the backward pass needs of the forward one
        interpret=interpret,
    )


def splash(q: Array, k: Array, v: Array, r: Any, interpret: bool = False) -> Array:
    """Attend with the splash kernel; segments, windows and soft-cap are honoured.

    `interpret` runs the kernel's arithmetic on any platform, for tests.

    Raises:
        ConfigError: the kernel cannot do what is asked, or the platform is not TPU.
    """
    from llm.models.attention import platform

    reason = obstacle(q, k, r, "tpu" if interpret else platform())
    if reason:
        raise ConfigError(
            f"The attention backend 'splash' cannot be used: {reason}.",
            "Use model.attention='auto' (or 'xla', 'chunked').",
        )
    segments = r.q_segments
    if segments is None:
        segments = jnp.zeros(q.shape[:2], jnp.int32)
    T = q.shape[1]

    def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

        run = _kernel(q.shape[2], T, r, interpret)

        def one(q: Array, k: Array, v: Array, ids: Array) -> Array:  # [T, N, H]
            swap = (1, 0, 2)
            pair = splash_attention_kernel.SegmentIds(q=ids, kv=ids)
            out = run(q.transpose(swap), k.transpose(swap), v.transpose(swap), segment_ids=pair)
            return out.transpose(swap)

        return jax.vmap(one)(q, k, v, segments)

    q = q * jnp.asarray(r.scale, q.dtype)  # the kernel does not scale
    layout = current_layout()
    if layout is None or layout.mesh.size == 1:
        return local(q, k, v, segments).astype(q.dtype)
    heads, kv_heads = (("batch", "length", name, "head_dim") for name in ("heads", "kv_heads"))
    mapped = shards.on_shards(local, [heads, kv_heads, kv_heads, ("batch", "length")], heads)
    return mapped(q, k, v, segments)

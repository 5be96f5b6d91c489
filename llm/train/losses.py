# SPDX-License-Identifier: Apache-2.0
"""Losses shared by the stages: pure functions of arrays that return (sum, weight) pairs."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Sums = dict[str, tuple[jax.Array, jax.Array]]


def token_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return log p(target) in float32: logits [..., V], targets [...] -> [...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def log1mexp(x: jax.Array) -> jax.Array:
    """Return log(1 - exp(x)) for x < 0 without losing digits on either side of -log 2."""
    x = jnp.minimum(x, -1e-7)  # exp(0) leaves nothing, whose log is -inf
    near = x > -math.log(2)
    # Both branches get harmless numbers where they are not taken: gradients pass through `where`.
    small = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    large = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return jnp.where(near, small, large)


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> Sums:
    """Sum weighted token cross-entropies.

    Args:
        logits: [B, T, V].
        targets: [B, T] token ids.
        weights: [B, T]; 0 leaves a position out.
        z_loss: coefficient of log²(Z), which keeps logits from drifting (PaLM, §5).
        label_smoothing: probability mass spread evenly over the vocabulary.

    Returns:
        "loss" (what is minimised), "nll" (plain negative log-likelihood) and "accuracy": how often
        no token is likelier than the target.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = log_z - chosen
    loss = nll
    if label_smoothing:
        loss = log_z - (1 - label_smoothing) * chosen - label_smoothing * logits.mean(axis=-1)
    if z_loss:
        loss = loss + z_loss * log_z**2
    # Not by argmax: XLA shares this maximum with the log-sum; on a CPU an argmax costs 30 times it.
    hit = (chosen >= jax.lax.stop_gradient(logits).max(axis=-1)).astype(jnp.float32)
    weight = weights.sum()
    return {
        "loss": ((loss * weights).sum(), weight),
        "nll": ((nll * weights).sum(), weight),
        "accuracy": ((hit * weights).sum(), weight),
    }


def in_chunks(
    loss: Callable[[Any, jax.Array, jax.Array], Sums],
    hidden: Any,
    targets: jax.Array,
    weights: jax.Array,
    chunk: int,
) -> Sums:
    """Apply a head-and-loss to slices of T so that [B, T, V] never exists at once.

    Args:
        loss: (hidden [B, t, D], targets [B, t], weights [B, t]) -> sums; recomputed backwards.
        hidden: [B, T, D], or a tree of arrays [B, T, …].
        targets: [B, T].
        weights: [B, T], or more of them, [B, T, n].
        chunk: positions at a time; 0, or one that does not divide T, means all at once.
    """
    length = targets.shape[1]
    if not chunk or chunk >= length or length % chunk:
        return loss(hidden, targets, weights)

    def slices(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], length // chunk, chunk, *x.shape[2:]), 1, 0)

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, jax.checkpoint(loss)(*part)), None

    parts = jax.tree.map(slices, (hidden, targets, weights))
    shapes = jax.eval_shape(loss, *jax.tree.map(lambda p: p[0], parts))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, start, parts)[0]

# SPDX-License-Identifier: Apache-2.0
"""Losses of policies: pure functions of log-probabilities, which every RL objective is made of.

Arrays are [B, T] over the targets of rows; `mask` is 1 on the tokens that the policy chose. A loss
is how probability ratios are taken (`log_ratios`), what is minimised of them (`surrogate`) and how
tokens and rows are averaged (`reduce`); `LOSSES` names the published combinations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

KL = ("k1", "k2", "k3")
LEVELS = ("token", "sequence", "sequence_token", "sum")
CLIPS = ("ppo", "cispo")
REDUCTIONS = ("sequences", "tokens", "rollout", "length", "rows")


class Kind(NamedTuple):
    """A published loss.

    Attributes:
        level: of the ratio; see `log_ratios`.
        clip: see `surrogate`.
        reduce: see `reduce`.
    """

    level: str
    clip: str
    reduce: str


LOSSES = {
    "grpo": Kind("token", "ppo", "sequences"),  # arXiv:2402.03300: mean of the sequences' means
    "bnpo": Kind("token", "ppo", "tokens"),  # mean over the update's tokens
    "dapo": Kind("token", "ppo", "rollout"),  # arXiv:2503.14476: over the rollout's tokens
    "dr_grpo": Kind("token", "ppo", "length"),  # arXiv:2503.20783: over a constant length
    "cispo": Kind("token", "cispo", "rollout"),  # arXiv:2506.13585
    "gspo": Kind("sequence", "ppo", "sequences"),  # arXiv:2507.18071
    "gspo_token": Kind("sequence_token", "ppo", "sequences"),  # the same gradient per sequence
    "rloo": Kind("sum", "ppo", "rows"),  # arXiv:2402.14740
    "ppo": Kind("token", "ppo", "tokens"),  # arXiv:1707.06347
}


def kl(logps: Array, ref: Array, kind: str) -> Array:
    """Estimate KL(policy ‖ reference) at tokens that the policy drew (Schulman, 2020).

    "k1" is unbiased, may be negative, and as a loss has no useful gradient; "k2" is half its
    square, whose gradient is that of the KL; "k3" is unbiased and never negative.

    Args:
        logps: [B, T] log-probabilities under the policy.
        ref: [B, T] under the reference.
        kind: of `KL`.
    """
    delta = ref - logps
    if kind == "k1":
        return -delta
    if kind == "k2":
        return 0.5 * delta**2
    return jnp.exp(delta) - delta - 1


def log_ratios(logps: Array, old: Array, mask: Array, level: str, limit: float = 0.0) -> Array:
    """Return the logarithm of how much likelier the policy has made what it drew.

    Args:
        logps: [B, T] now.
        old: [B, T] when it drew.
        mask: [B, T].
        level: "token" [B, T]; "sequence" [B, 1], the mean over the tokens; "sequence_token"
            [B, T], the same value with each token's own gradient; "sum" [B, 1].
        limit: largest absolute value (20 in verl, OpenRLHF and Tunix); 0 for none (TRL).
    """
    ratio = logps - old
    if level == "sum":
        ratio = (ratio * mask).sum(axis=1, keepdims=True)
    elif level != "token":
        mean = (ratio * mask).sum(axis=1, keepdims=True)
        mean = mean / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        still = jax.lax.stop_gradient
        ratio = mean if level == "sequence" else still(mean) + logps - still(logps)
    return jnp.clip(ratio, -limit, limit) if limit else ratio


def surrogate(
    ratio: Array,
    advantages: Array,
    logps: Array,
    *,
    clip: str,
    low: float,
    high: float,
    cap: float = 0.0,
    dual: float = 0.0,
) -> tuple[Array, Array]:
    """Return what is minimised at each token (or sequence), and where clipping took its gradient.

    Args:
        ratio: [B, T] or [B, 1]; exp of `log_ratios`.
        advantages: [B, T] or [B, 1].
        logps: [B, T].
        clip: "ppo": the smaller of ratio · A and clip(ratio, 1 - low, 1 + high) · A; "cispo":
            min(ratio, high) · A · log p, where only log p has a gradient: `high` is the bound
            itself there (5, say; 0.2 would scale every gradient down).
        low, high: see `clip`.
        cap: largest ratio in the unclipped term (TRL's delta); 0 for none.
        dual: bound c on the loss of tokens with A < 0, c · |A| (arXiv:1912.09729; 3 in verl);
            0 for none.
    """
    if clip == "cispo":
        bounded = jax.lax.stop_gradient(jnp.minimum(ratio, high))
        return -bounded * advantages * logps, jnp.broadcast_to(ratio > high, logps.shape)
    bounded = jnp.clip(ratio, 1 - low, 1 + high) * advantages
    plain = (jnp.minimum(ratio, cap) if cap else ratio) * advantages
    loss, clipped = -jnp.minimum(plain, bounded), bounded < plain
    if dual:
        most = -dual * advantages
        held = (advantages < 0) & (loss > most)
        loss, clipped = jnp.where(held, most, loss), clipped | held
    return loss, clipped


def reduce(
    losses: Array, mask: Array, how: str, *, share: Array | None = None, length: int = 0
) -> tuple[Array, Array]:
    """Return (sum, weight) of losses, whose quotient over the whole update is minimised.

    Args:
        losses: [B, T], or [B, 1] for every token of a row (for "rows": of the row).
        mask: [B, T].
        how: "sequences" averages each row, then the rows; "tokens" all tokens of the update;
            "rollout" divides by the mean number of tokens per row in the whole rollout, times the
            rows of the update; "length" by `length` times the rows; "rows" averages the rows'
            own losses [B, 1].
        share: [B] tokens per row of the rollout, for "rollout".
        length: for "length".
    """
    rows = jnp.float32(losses.shape[0])
    if how == "rows":
        return losses[:, 0].sum(), rows
    summed = (losses * mask).sum(axis=1)
    if how == "sequences":
        return (summed / jnp.maximum(mask.sum(axis=1), 1)).sum(), rows
    if how == "tokens":
        return summed.sum(), mask.sum()
    if how == "rollout":
        assert share is not None
        return summed.sum(), share.sum()
    return summed.sum(), rows * length


def value_loss(
    values: Array, old: Array, returns: Array, mask: Array, clip: float
) -> tuple[Array, Array, Array]:
    """Return (sum, weight) of half the squared errors of values, and how many were clipped.

    Args:
        values: [B, T] now.
        old: [B, T] when the text was drawn; values move at most `clip` from them, where the worse
            of both errors counts (0: no clipping).
        returns: [B, T] what the values should be.
        mask: [B, T].
        clip: see `old`.
    """
    errors = (values - returns) ** 2
    clipped = jnp.zeros_like(errors)
    if clip:
        near = (jnp.clip(values, old - clip, old + clip) - returns) ** 2
        clipped = (near > errors).astype(errors.dtype)
        errors = jnp.maximum(errors, near)
    return 0.5 * (errors * mask).sum(), mask.sum(), (clipped * mask).sum()

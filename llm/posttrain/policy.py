# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning: objectives over answers that the policy drew, judged by rewards.

The rows come from `llm.posttrain.rollout`. Besides tokens, targets and weights (1 on the answer's
tokens) they hold `old_logps` [B, T], `advantages` [B] or [B, T], `share` and `temperature` [B], and
where config.rollout asks for them `ref_logps` [B, T] with `kl_coef` [B], `correction` [B, T], and
`old_values`, `returns`, `value_weights` [B, T].
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import ConfigError, unknown
from llm.posttrain import policy_loss
from llm.train import losses
from llm.train.objective import Batch, Objective, model_inputs, nothing


def token_scores(
    model: Any,
    params: Any,
    rows: Batch,
    keys: jax.Array | None = None,
    chunk: int = 0,
    value_body: bool = True,
) -> dict[str, jax.Array]:
    """Return float32 [B, T]: "logps" of the targets, "entropy" there, and "values" if there are.

    Args:
        model: a Transformer.
        params: its parameters.
        rows: tokens, targets and `temperature` [B], by which the logits are divided.
        keys: for dropout [B], or None.
        chunk: positions whose logits exist at once; 0, or one that does not divide T, for all.
        value_body: whether the values' gradients reach the body.
    """
    variables = {"params": params}
    hidden, _ = model.apply(
        variables,
        rows["tokens"],
        **model_inputs(rows),
        dropout_keys=keys,
        method="hidden_and_aux",
    )
    temperature = rows["temperature"][:, None, None]

    def score(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, targets = part
        logits = model.apply(variables, states, method="head") / temperature
        logs = jax.nn.log_softmax(logits, axis=-1)
        return losses.token_logprobs(logits, targets), -(jnp.exp(logs) * logs).sum(axis=-1)

    B, T = rows["targets"].shape
    if chunk and chunk < T and T % chunk == 0:
        slices = (
            jnp.moveaxis(hidden.reshape(B, T // chunk, chunk, -1), 1, 0),
            jnp.moveaxis(rows["targets"].reshape(B, T // chunk, chunk), 1, 0),
        )
        found = jax.lax.map(jax.checkpoint(score), slices)
        logps, entropy = (jnp.moveaxis(x, 0, 1).reshape(B, T) for x in found)
    else:
        logps, entropy = score((hidden, rows["targets"]))
    made = {"logps": logps, "entropy": entropy}
    if model.config.value_head:
        states = hidden if value_body else jax.lax.stop_gradient(hidden)
        made["values"] = model.apply(variables, states, method="value")
    return made


def policy_sums(
    logps: jax.Array,
    entropies: jax.Array,
    rows: Mapping[str, jax.Array],
    *,
    loss: str,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 0.0,
    dual: float = 0.0,
    ratio_limit: float = 0.0,
    kl: str = "k3",
    entropy: float = 0.0,
    length: int = 0,
) -> losses.Sums:
    """Return the loss of a policy and its metrics as (sum, weight) pairs.

    Args:
        logps: [B, T] of the targets, now.
        entropies: [B, T] there.
        rows: see the module.
        loss: of `policy_loss.LOSSES`.
        clip_low, clip_high, cap, dual: see `policy_loss.surrogate`.
        ratio_limit: see `policy_loss.log_ratios`.
        kl: estimator of the KL in the loss, where the rows have `ref_logps`.
        entropy: weight of the mean entropy, which is made larger.
        length: tokens that "dr_grpo" divides by.
    """
    kind = policy_loss.LOSSES[loss]
    mask, advantages = rows["weights"], rows["advantages"]
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    ratio = policy_loss.log_ratios(logps, rows["old_logps"], mask, kind.level, ratio_limit)
    each, clipped = policy_loss.surrogate(
        jnp.exp(ratio),
        advantages,
        logps,
        clip=kind.clip,
        low=clip_low,
        high=clip_high,
        cap=cap,
        dual=dual,
    )
    if "correction" in rows:
        correction = rows["correction"]
        if kind.reduce == "rows":  # one loss per answer: the mean of its tokens' weights
            summed = (correction * mask).sum(axis=1, keepdims=True)
            correction = summed / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        each = each * correction
    count = mask.sum()
    sums = {}
    if "ref_logps" in rows:
        far = policy_loss.kl(logps, rows["ref_logps"], kl)
        sums["kl"] = ((far * mask).sum(), count)
        far = rows["kl_coef"][:, None] * far
        each = each + ((far * mask).sum(axis=1, keepdims=True) if kind.reduce == "rows" else far)
    total, weight = policy_loss.reduce(
        each, mask, kind.reduce, share=rows.get("share"), length=length
    )
    spread = (entropies * mask).sum()
    if entropy:
        total = total - entropy * spread / jnp.maximum(count, 1) * weight
    moved = logps - rows["old_logps"]
    where = mask if clipped.shape[1] > 1 else jnp.ones_like(clipped, jnp.float32)
    return {
        "loss": (total, weight),
        "entropy": (spread, count),
        "clip_fraction": ((clipped * where).sum(), where.sum()),
        "kl_old": (((jnp.exp(-moved) + moved - 1) * mask).sum(), count),
        **sums,
    }


def _objective(model: Any, loss: str, kl: str, chunk: int, **options: Any) -> Objective:
    if loss not in policy_loss.LOSSES:
        raise unknown("objective.loss", loss, policy_loss.LOSSES)
    if kl not in policy_loss.KL:
        raise unknown("objective.kl", kl, policy_loss.KL)
    if loss == "dr_grpo" and options.get("length", 0) <= 0:
        raise ConfigError(
            "objective.loss='dr_grpo' divides by a constant number of tokens.",
            "Set config.objective.length, usually to config.rollout.max_tokens.",
        )
    if loss == "cispo" and options["clip_high"] < 1:
        raise ConfigError(
            f"objective.loss='cispo' limits ratios to clip_high={options['clip_high']}, below 1.",
            "Set config.objective.clip_high to the largest ratio itself, such as 5.",
        )
    dropout = model.config.stochastic

    def compute(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        del frozen
        scores = token_scores(model, params, batch, keys if dropout else None, chunk)
        return policy_sums(scores["logps"], scores["entropy"], batch, loss=loss, kl=kl, **options)

    return Objective(nothing, compute)


def grpo(
    model: Any,
    *,
    loss: str = "dapo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 0.0,
    dual: float = 0.0,
    ratio_limit: float = 0.0,
    kl: str = "k3",
    entropy: float = 0.0,
    length: int = 0,
    chunk: int = 0,
) -> Objective:
    """Group-relative policy optimisation and its descendants.

    Args:
        model: a Transformer.
        loss: "dapo" (TRL's default), "grpo", "bnpo", "dr_grpo", "cispo", "gspo" or "gspo_token".
        clip_low: ratios below 1 - clip_low have no gradient where A < 0.
        clip_high: the same above 1 + clip_high where A > 0 (0.28 in DAPO); see "cispo".
        cap: largest ratio where A < 0 (TRL's delta); 0 for none.
        dual: bound of the loss where A < 0, in |A|; 0 for none.
        ratio_limit: largest |log ratio|; 0 for none (TRL), 20 in verl, OpenRLHF, Tunix.
        kl: estimator of the KL in the loss; its coefficient is config.rollout.kl.
        entropy: weight of the mean entropy.
        length: tokens that "dr_grpo" divides by.
        chunk: positions whose logits exist at once; 0 for all.
    """
    return _objective(
        model,
        loss,
        kl,
        chunk,
        clip_low=clip_low,
        clip_high=clip_high,
        cap=cap,
        dual=dual,
        ratio_limit=ratio_limit,
        entropy=entropy,
        length=length,
    )


def rloo(
    model: Any,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio_limit: float = 0.0,
    kl: str = "k3",
    entropy: float = 0.0,
    chunk: int = 0,
) -> Objective:
    """REINFORCE on whole answers, each clipped by its own ratio; arguments as for `grpo`."""
    return _objective(
        model,
        "rloo",
        kl,
        chunk,
        clip_low=clip_low,
        clip_high=clip_high,
        ratio_limit=ratio_limit,
        entropy=entropy,
    )


def reinforce_pp(
    model: Any,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float = 0.0,
    ratio_limit: float = 20.0,
    kl: str = "k3",
    entropy: float = 0.0,
    chunk: int = 0,
) -> Objective:
    """REINFORCE with PPO's clipping and no value head; arguments as for `grpo`."""
    return _objective(
        model,
        "ppo",
        kl,
        chunk,
        clip_low=clip_low,
        clip_high=clip_high,
        dual=dual,
        ratio_limit=ratio_limit,
        entropy=entropy,
    )


def ppo(
    model: Any,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual: float = 0.0,
    ratio_limit: float = 0.0,
    value_clip: float = 0.2,
    value_weight: float = 0.1,
    value_body: bool = True,
    kl: str = "k3",
    entropy: float = 0.0,
    chunk: int = 0,
) -> Objective:
    """Proximal policy optimisation with a value head on the policy's own body.

    Args:
        model: a Transformer with `value_head`.
        clip_low, clip_high, dual, ratio_limit, kl, entropy, chunk: see `grpo`.
        value_clip: see `policy_loss.value_loss`.
        value_weight: of the value loss beside the policy's.
        value_body: False keeps the value loss out of the body: it trains the head alone.

    Raises:
        ConfigError: the model has no value head.
    """
    if not model.config.value_head:
        raise ConfigError(
            "config.objective.name='ppo' needs a value head.", "Set config.model.value_head=true."
        )
    if kl not in policy_loss.KL:
        raise unknown("objective.kl", kl, policy_loss.KL)
    dropout = model.config.stochastic

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        del frozen
        scores = token_scores(model, params, batch, keys if dropout else None, chunk, value_body)
        sums = policy_sums(
            scores["logps"],
            scores["entropy"],
            batch,
            loss="ppo",
            clip_low=clip_low,
            clip_high=clip_high,
            dual=dual,
            ratio_limit=ratio_limit,
            kl=kl,
            entropy=entropy,
        )
        return with_values(sums, scores["values"], batch, clip=value_clip, weight=value_weight)

    return Objective(nothing, loss)


def with_values(
    sums: losses.Sums,
    values: jax.Array,
    rows: Mapping[str, jax.Array],
    *,
    clip: float,
    weight: float,
) -> losses.Sums:
    """Add the value loss, at the weight of the policy's tokens."""
    wrong, count, clipped = policy_loss.value_loss(
        values, rows["old_values"], rows["returns"], rows["value_weights"], clip
    )
    total, tokens = sums["loss"]
    return {
        **sums,
        "loss": (total + weight * wrong / jnp.maximum(count, 1) * tokens, tokens),
        "policy_loss": (total, tokens),
        "value_loss": (wrong, count),
        "value_clip_fraction": (clipped, count),
    }

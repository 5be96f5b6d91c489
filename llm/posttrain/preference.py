# SPDX-License-Identifier: Apache-2.0
"""Preference learning: objectives over rows with a chosen and a rejected answer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llm.core import trees
from llm.errors import ConfigError, unknown
from llm.models import tuning
from llm.train import losses
from llm.train.objective import Batch, Objective, model_inputs, nothing

REFERENCES = ("start", "base")


def sequence_logprobs(
    model: Any, params: Any, batch: Batch, prefix: str, keys: jax.Array | None, chunk: int
) -> jax.Array:
    """Return the summed log-probability of each row's weighted targets: float32 [B]."""
    variables = {"params": params}
    hidden, _ = model.apply(
        variables,
        batch[f"{prefix}tokens"],
        **model_inputs(batch, prefix),
        dropout_keys=keys,
        method="hidden_and_aux",
    )

    def head(h: jax.Array, targets: jax.Array, weights: jax.Array) -> losses.Sums:
        logps = losses.token_logprobs(model.apply(variables, h, method="head"), targets)
        summed = (logps * weights).sum(axis=-1)
        return {"logp": (summed, jnp.zeros_like(summed))}

    sums = losses.in_chunks(
        head, hidden, batch[f"{prefix}targets"], batch[f"{prefix}weights"], chunk
    )
    return sums["logp"][0]


def joined(batch: Batch) -> dict[str, jax.Array]:
    """Put the rejected side under the chosen one: "chosen_tokens" [B, T] -> "tokens" [2B, T]."""
    return {
        name.removeprefix("chosen_"): jnp.concatenate(
            [batch[name], batch[name.replace("chosen_", "rejected_")]]
        )
        for name in batch
        if name.startswith("chosen_")
    }


def _both(model: Any, params: Any, batch: Batch, keys: Any, chunk: int) -> tuple[Any, Any]:
    """Return the log-probabilities of chosen and rejected answers from one forward pass."""
    # The same dropout masks on both answers: their difference is what is learned.
    twice = None if keys is None else jnp.concatenate([keys, keys])
    chosen, rejected = jnp.split(
        sequence_logprobs(model, params, joined(batch), "", twice, chunk), 2
    )
    return chosen, rejected


def sigmoid_loss(margin: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """Return DPO's loss of reward margins [B] (Rafailov et al., 2023, eq. 7).

    With label smoothing ε it is the conservative form: labels are flipped with probability ε.
    """
    scaled = beta * margin
    return -(1 - label_smoothing) * jax.nn.log_sigmoid(
        scaled
    ) - label_smoothing * jax.nn.log_sigmoid(-scaled)


def squared_loss(margin: jax.Array, *, beta: float, label_smoothing: float) -> jax.Array:
    """Return IPO's loss: the squared distance of the margin to 1 / 2β (Azar et al., 2023)."""
    del label_smoothing
    return (margin - 1 / (2 * beta)) ** 2


def _against_reference(
    model: Any,
    pair_loss: Callable[..., jax.Array],
    beta: float,
    label_smoothing: float,
    sft_weight: float,
    chunk: int,
    reference: str,
) -> Objective:
    """Build an objective of the log-ratio margin against a frozen reference."""
    dropout = model.config.stochastic
    reference_of = _reference(model, reference)

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        chosen, rejected = _both(model, params, batch, keys if dropout else None, chunk)
        ref_chosen, ref_rejected = _both(*reference_of(params, frozen), batch, None, chunk)
        length = batch["chosen_weights"].sum(axis=-1)
        real = (length > 0) & (batch["rejected_weights"].sum(axis=-1) > 0)
        valid = real.astype(jnp.float32)
        good, bad = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
        each = pair_loss(
            (chosen - ref_chosen) - (rejected - ref_rejected),
            beta=beta,
            label_smoothing=label_smoothing,
        )
        if sft_weight:
            each = each - sft_weight * chosen / jnp.maximum(length, 1)
        weight = valid.sum()

        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.where(real, x, 0).sum(), weight

        return {
            "loss": total(each),
            "reward_accuracy": total(0.5 + 0.5 * jnp.sign(good - bad)),  # a tie is half right
            "reward_margin": total(good - bad),
            "reward_chosen": total(good),
            "reward_rejected": total(bad),
            "logp_chosen": total(chosen),
            "logp_rejected": total(rejected),
        }

    copy = functools.partial(jax.tree.map, jnp.copy)
    return Objective(nothing if reference == "base" else copy, loss)


def _reference(model: Any, kind: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return (params, frozen) -> (model, parameters) of the reference.

    "start" puts the trained leaves back to what they were; "base" leaves the adapters out, which
    for fresh low-rank updates is the same without keeping anything.

    Raises:
        ConfigError: another kind, or "base" without adapters.
    """
    if kind not in REFERENCES:
        raise unknown("objective.reference", kind, REFERENCES)
    if kind == "base" and model.config.adapter.name == "none":
        raise ConfigError(
            "objective.reference='base' is the model without its adapters, but it has none.",
            "Use objective.reference='start', or set config.model.adapter.name.",
        )

    def start(params: Any, frozen: Any) -> tuple[Any, Any]:
        return model, trees.unflatten(trees.flatten(params) | trees.flatten(frozen))

    def base(params: Any, frozen: Any) -> tuple[Any, Any]:
        del frozen
        config, rest = tuning.without(model.config, params)
        return type(model)(config), rest

    made = {"start": start, "base": base}[kind]
    return lambda params, frozen: made(jax.lax.stop_gradient(params), frozen)


def dpo(
    model: Any,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    chunk: int = 0,
    reference: str = "start",
) -> Objective:
    """Direct preference optimisation against a frozen reference.

    Args:
        model: a Transformer.
        beta: strength of the pull to the reference.
        label_smoothing: probability that a label is wrong (cDPO); 0 is plain DPO.
        sft_weight: weight of the chosen answer's mean negative log-likelihood (RPO).
        chunk: positions whose logits exist at once; 0 for all.
        reference: "start", the model as training begins (a copy of what is trained, no more), or
            "base", the model without its adapters (no copy).
    """
    return _against_reference(
        model, sigmoid_loss, beta, label_smoothing, sft_weight, chunk, reference
    )


def ipo(
    model: Any,
    *,
    beta: float = 0.1,
    sft_weight: float = 0.0,
    chunk: int = 0,
    reference: str = "start",
) -> Objective:
    """Identity preference optimisation: like `dpo`, with a bounded margin."""
    return _against_reference(model, squared_loss, beta, 0.0, sft_weight, chunk, reference)

# SPDX-License-Identifier: Apache-2.0
"""What training minimises: two pure functions, in optax's manner."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.train import losses

Batch = Mapping[str, jax.Array]

MODEL_INPUTS = (
    "segments",
    "positions",
    "encoder_tokens",
    "encoder_segments",
    "encoder_positions",
)


class Objective(NamedTuple):
    """A loss with what it keeps beside the parameters.

    Attributes:
        init: params -> frozen tree: (), a reference policy, or a teacher.
        loss: (params, frozen, batch, keys) -> {"loss": (sum, weight), …}; keys [B] are PRNG keys,
            one per example of the batch.
    """

    init: Callable[[Any], Any]
    loss: Callable[[Any, Any, Batch, jax.Array], losses.Sums]


def nothing(params: Any) -> tuple:
    """Return the frozen tree of an objective that needs none."""
    del params
    return ()


def model_inputs(batch: Batch, prefix: str = "") -> dict[str, jax.Array]:
    """Pick the model's keyword inputs out of a batch of rows; `prefix` as in "chosen_"."""
    return {key: batch[prefix + key] for key in MODEL_INPUTS if prefix + key in batch}


def cross_entropy(
    model: Any,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int = 0,
    aux_weight: float = 1.0,
) -> Objective:
    """Train on rows: weighted next-token (or masked-token) cross-entropy.

    CLM, MLM, span corruption, prefix LM, FIM and SFT differ only in how rows were written.

    Args:
        model: a Transformer.
        z_loss: see `losses.cross_entropy`.
        label_smoothing: see `losses.cross_entropy`.
        chunk: positions whose logits exist at once; 0 for all.
        aux_weight: factor on the model's own losses (mixture-of-experts balance).
    """
    dropout = model.config.dropout > 0 or model.config.stochastic_depth > 0

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        del frozen
        variables = {"params": params}
        hidden, aux = model.apply(
            variables,
            batch["tokens"],
            **model_inputs(batch),
            dropout_keys=keys if dropout else None,
            method="hidden_and_aux",
        )

        def head(h: jax.Array, targets: jax.Array, weights: jax.Array) -> losses.Sums:
            logits = model.apply(variables, h, method="head")
            return losses.cross_entropy(
                logits, targets, weights, z_loss=z_loss, label_smoothing=label_smoothing
            )

        sums = losses.in_chunks(head, hidden, batch["targets"], batch["weights"], chunk)
        total, weight = sums["loss"]
        for name, (value, count) in aux.items():
            sums[name] = (value, count)
            total = total + aux_weight * weight * value / jnp.maximum(count, 1)
        return {**sums, "loss": (total, weight)}

    return Objective(nothing, loss)

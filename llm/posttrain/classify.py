# SPDX-License-Identifier: Apache-2.0
"""Classification of texts or tokens: the weighted cross-entropy of pre-training, over classes."""

from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import ConfigError
from llm.models.pooling import pooled
from llm.train import losses
from llm.train.objective import Batch, Objective, model_inputs, nothing


def f1_sums(hits: jax.Array, truth: jax.Array, weights: jax.Array, n: int) -> losses.Sums:
    """Return every class's F1 as the ratio (2 TP, 2 TP + FP + FN), which adds up over batches.

    Args:
        hits: predicted classes [B, T].
        truth: [B, T].
        weights: [B, T]; 0 leaves a position out.
        n: classes.
    """
    said, real = (jax.nn.one_hot(x, n) * weights[:, :, None] for x in (hits, truth))
    both = jnp.sum(said * (jax.nn.one_hot(truth, n)), axis=(0, 1))
    total = jnp.sum(said + real, axis=(0, 1))
    return {f"f1_{i}": (2 * both[i], total[i]) for i in range(n)}


def classify(
    model: Any,
    *,
    label_smoothing: float = 0.0,
    balance_weight: float = 0.01,
    router_z_weight: float = 0.001,
) -> Objective:
    """Train a classification head (and what else is trainable) on rows whose targets are classes.

    Metrics: accuracy and every class's F1; evaluations add macro_f1, their mean.

    Args:
        model: a Transformer with model.head="sequence" or "token".
        label_smoothing: probability mass spread evenly over the classes.
        balance_weight: factor on the experts' balance loss.
        router_z_weight: factor on the router's z-loss.

    Raises:
        ConfigError: the model's head gives tokens.
    """
    factors = {"moe_balance_loss": balance_weight, "moe_z_loss": router_z_weight}
    c = model.config
    if not c.classifies or c.n_classes == 1:
        raise ConfigError(
            f"config.objective.name='classify' needs a classification head, not {c.head!r} with "
            f"n_classes={c.n_classes}.",
            "Set config.model.head='sequence' (or 'token') and config.model.n_classes=0.",
        )

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        del frozen
        variables = {"params": params}
        hidden, aux = model.apply(
            variables,
            batch["tokens"],
            **model_inputs(batch),
            dropout_keys=keys if c.stochastic else None,
            method="hidden_and_aux",
        )
        logits = model.apply(variables, hidden, method="head")
        weights = batch["weights"]
        if c.head == "sequence":
            weights = weights * pooled(batch["segments"], c.causal)
        sums = losses.cross_entropy(
            logits, batch["targets"], weights, label_smoothing=label_smoothing
        )
        total, weight = sums["loss"]
        for name, (value, count) in aux.items():
            sums[name] = (value, count)
            total = total + factors.get(name, 0.0) * weight * value / jnp.maximum(count, 1)
        del sums["nll"]  # a perplexity of classes would mislead
        hits = jnp.argmax(logits, axis=-1)
        more = f1_sums(hits, batch["targets"], weights, c.n_classes)
        return {**sums, **more, "loss": (total, weight)}

    return Objective(nothing, loss)

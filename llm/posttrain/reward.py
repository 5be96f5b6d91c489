# SPDX-License-Identifier: Apache-2.0
"""Reward models: a score per answer, learned from which of two answers was preferred."""

from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import ConfigError
from llm.models import pooling
from llm.posttrain import pair_losses
from llm.posttrain.preference import joined
from llm.train import losses
from llm.train.objective import Batch, Objective, model_inputs, nothing


def reward(model: Any, *, centre: float = 0.0, margin: float = 1.0) -> Objective:
    """Train a score head (and what else is trainable) on preference rows.

    A text is scored at its last token, the stop token of the answer. Dropout is off: two masks
    would be compared instead of two answers.

    Args:
        model: a Transformer with model.head="sequence" and model.n_classes=1.
        centre: factor on the squared sum of both scores.
        margin: factor on the margins of the rows.

    Raises:
        ConfigError: the model has another head.
    """
    c = model.config
    if c.head != "sequence" or c.n_classes != 1:
        raise ConfigError(
            f"config.objective.name='reward' needs one score per text, not head={c.head!r} with "
            f"n_classes={c.n_classes}.",
            "Set config.model.head='sequence' and config.model.n_classes=1.",
        )

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        del frozen, keys
        both = joined(batch)
        found = pooling.scores(model, params, both["tokens"], **model_inputs(both))
        chosen, rejected = jnp.split(found, 2)
        real = (batch["chosen_segments"] > 0).any(1) & (batch["rejected_segments"] > 0).any(1)
        margins = margin * batch["margins"] if "margins" in batch else 0.0
        each = pair_losses.bradley_terry(chosen, rejected, margins, centre)
        return pair_losses.pair_sums(each, chosen, rejected, real)

    return Objective(nothing, loss)

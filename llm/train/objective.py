# SPDX-License-Identifier: Apache-2.0
"""What training minimises: two pure functions, in optax's manner."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.errors import ConfigError
from llm.train import losses

Batch = Mapping[str, jax.Array]

MODEL_INPUTS = (
    "segments",
    "positions",
    "prefix",
    "encoder_tokens",
    "encoder_segments",
    "encoder_positions",
)


class Objective(NamedTuple):
    """A loss with what it keeps beside the parameters.

    Attributes:
        init: trained leaves of the parameters -> frozen tree: (), a reference policy (of the
            trained leaves only: the others stay what they are), or a teacher.
        loss: (params, frozen, batch, keys) -> {"loss": (sum, weight), …}; keys [B] are PRNG keys,
            one per example of the batch, or None to draw nothing (evaluation).
        given: what `init` would return, where it exists already (a teacher): it is laid over the
            mesh instead of being computed.
    """

    init: Callable[[Any], Any]
    loss: Callable[[Any, Any, Batch, Any], losses.Sums]
    given: Any = None


def nothing(params: Any) -> tuple:
    """Return the frozen tree of an objective that needs none."""
    del params
    return ()


def model_inputs(batch: Batch, prefix: str = "") -> dict[str, jax.Array]:
    """Pick the model's keyword inputs out of a batch of rows; `prefix` as in "chosen_"."""
    found = {key: batch[prefix + key] for key in MODEL_INPUTS if prefix + key in batch}
    if "prefix" in found:
        found["prefix"] = found["prefix"] > 0
    return found


def check_rows(config: Any, batch: Batch) -> None:
    """Refuse rows that are made for another shape of model.

    Raises:
        ConfigError: naming what the rows have, or lack.
    """
    both = config.architecture == "encoder_decoder"
    if both != ("encoder_tokens" in batch):
        what = "no encoder side" if both else "an encoder side"
        raise ConfigError(
            f"The rows have {what}, but the model is of shape {config.architecture!r}.",
            "Choose a data.corruption for it (span_corruption and ul2 write an encoder side; "
            "ul2 with decoder_only=true does not).",
        )
    if "prefix" in batch and config.architecture != "decoder":
        raise ConfigError(
            f"The rows have a prefix, but the model is of shape {config.architecture!r}.",
            "A prefix mask is for decoders.",
        )


def cross_entropy(
    model: Any,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    chunk: int = 0,
    balance_weight: float = 0.01,
    router_z_weight: float = 0.001,
) -> Objective:
    """Train on rows: weighted next-token (or masked-token) cross-entropy.

    CLM, MLM, span corruption, prefix LM, FIM and SFT differ only in how rows were written.

    Args:
        model: a Transformer.
        z_loss: see `losses.cross_entropy`.
        label_smoothing: see `losses.cross_entropy`.
        chunk: positions whose logits exist at once; 0 for all.
        balance_weight: factor on the experts' balance loss (arXiv:2101.03961, §2.2).
        router_z_weight: factor on the router's z-loss (arXiv:2202.08906, §3.1).
    """
    factors = {"moe_balance_loss": balance_weight, "moe_z_loss": router_z_weight}
    dropout = model.config.stochastic

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        del frozen
        check_rows(model.config, batch)
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
            sums[name] = (value, count)  # the others are figures of how experts are used
            if name in factors:
                total = total + factors[name] * weight * value / jnp.maximum(count, 1)
        return {**sums, "loss": (total, weight)}

    return Objective(nothing, loss)

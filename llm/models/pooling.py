# SPDX-License-Identifier: Apache-2.0
"""Which token stands for a text, and the score that a reward model reads there."""

from typing import Any

import jax
import jax.numpy as jnp


def pooled(segments: jax.Array, causal: bool) -> jax.Array:
    """Tell which token stands for its text: the last that a decoder reads, an encoder's first.

    Args:
        segments: [B, T] int32; texts 1, 2, … of a row, 0 = padding.
        causal: whether the model is a decoder.

    Returns:
        [B, T] bool, one token per text.
    """
    edge = jnp.zeros_like(segments[:, :1])
    if causal:
        beside = jnp.concatenate([segments[:, 1:], edge], axis=1)
    else:
        beside = jnp.concatenate([edge, segments[:, :-1]], axis=1)
    return (segments > 0) & (segments != beside)


def scores(
    model: Any, params: Any, tokens: jax.Array, segments: jax.Array | None = None, **inputs: Any
) -> jax.Array:
    """Return the score of each row's text: float32 [B].

    Args:
        model: a Transformer with head="sequence" and one class.
        params: its parameters.
        tokens: [B, T] ids, one text per row.
        segments: [B, T], 1 on the text and 0 on padding; None where rows are full.
        inputs: `positions`, `dropout_keys`: see `Transformer`.
    """
    if segments is None:
        segments = jnp.ones_like(tokens)
    variables = {"params": params}
    hidden = model.apply(variables, tokens, segments=segments, method="hidden", **inputs)
    place = jnp.argmax(pooled(segments, model.config.causal), axis=1)
    state = jnp.take_along_axis(hidden, place[:, None, None], axis=1)  # [B, 1, D]
    return model.apply(variables, state, method="head")[:, 0, 0]

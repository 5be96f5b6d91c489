# SPDX-License-Identifier: Apache-2.0
"""What compression costs: bits per byte, agreement with the original, and bytes."""

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.core import checkpoint, statistics
from llm.core.trees import size_bytes
from llm.generate.language_model import LanguageModel
from llm.generate.loading import cast, for_inference
from llm.models import quant
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer


def runnable(lm: LanguageModel, params: Any, config: TransformerConfig) -> LanguageModel:
    """Return the language model with a variant's parameters and configuration.

    Integers become the weights they stand for: what a model that reads them in place computes
    (see `llm.models.quant`), by the program that the original has compiled already.
    """
    weights = cast(quant.dequantize(params, config.dtype), config.dtype)
    if config == lm.config:
        return dataclasses.replace(lm, params=weights)
    config = for_inference(config, config.dtype)
    return dataclasses.replace(lm, config=config, model=Transformer(config), params=weights)


def zeros(params: Any) -> float:
    """Return the share of a variant's numbers that are zero."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(quant.dequantize(params))]
    return sum(leaf.size - np.count_nonzero(leaf) for leaf in leaves) / sum(
        leaf.size for leaf in leaves
    )


def memory_bytes(params: Any) -> int:
    """Return the bytes of a variant's parameters as a model holds them: 4-bit ones as int8."""
    return size_bytes(quant.unpack(params))


def disk_bytes(params: Any, folder: str) -> int:
    """Write a tree as a checkpoint, return the bytes of its files, and remove it."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        with checkpoint.Checkpointer(place, asynchronous=False) as writer:
            writer.save(0, {"params": params})
        return folder_bytes(place)


def folder_bytes(folder: Any) -> int:
    """Return the bytes of all files of a local folder."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def losses(lm: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """Return the bits that the model needs for each text, float64 [n]."""
    return -np.asarray(lm.loglikelihood_rolling(texts), np.float64) / math.log(2)


def windows(
    lm: LanguageModel, texts: Sequence[str], length: int, rows: int = 8
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yield (tokens [rows, length], real tokens of each text) of the beginnings of texts.

    Rows are filled up at the end, which a causal model's earlier positions do not see.
    """
    fill = lm.tokenizer.pad_id
    for start in range(0, len(texts), rows):
        ids = [lm.encode_prompt(text)[:length] for text in texts[start : start + rows]]
        tokens = np.full((rows, length), fill, np.int32)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = one
        yield tokens, [len(one) for one in ids]


@jax.jit
def _compare(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return whether the likeliest tokens agree, and KL(first || second) in bits, [B, T] each."""
    p, q = jax.nn.log_softmax(first, axis=-1), jax.nn.log_softmax(second, axis=-1)
    agree = jnp.argmax(first, axis=-1) == jnp.argmax(second, axis=-1)
    return agree, jnp.sum(jnp.exp(p) * (p - q), axis=-1) / math.log(2)


def agreement(
    lm: LanguageModel, other: LanguageModel, texts: Sequence[str], length: int = 128
) -> tuple[statistics.Estimate, statistics.Estimate]:
    """Compare the next-token distributions of two models on the same contexts.

    Args:
        lm, other: causal models with one tokenizer.
        texts: their first `length` tokens are read.
        length: tokens.

    Returns:
        The share of positions where both find the same token likeliest, and the mean
        Kullback-Leibler divergence from the first model to the second in bits; errors over texts.
    """
    length = min(length, lm.config.max_length)
    same: list[float] = []
    diverged: list[float] = []
    counts: list[int] = []
    for tokens, lengths in windows(lm, texts, length):
        compared = _compare(lm.logits(tokens), other.logits(tokens))
        agree, divergence = (np.asarray(values, np.float64) for values in compared)
        for row, n in enumerate(lengths):
            same.append(float(agree[row, :n].sum()))
            diverged.append(float(divergence[row, :n].sum()))
            counts.append(n)
    return statistics.ratio(same, counts), statistics.ratio(diverged, counts)


def measure(
    lm: LanguageModel,
    other: LanguageModel,
    texts: Sequence[str],
    reference: np.ndarray,
    length: int,
) -> dict[str, Any]:
    """Return the quality of a variant beside the original.

    Args:
        lm: the original.
        other: the variant.
        texts: what both are scored on.
        reference: `losses` of the original.
        length: tokens of each text that `agreement` reads.
    """
    mine = losses(other, texts)
    n_bytes = [len(text.encode("utf-8")) for text in texts]
    same, diverged = agreement(lm, other, texts, length)
    return {
        "bits_per_byte": statistics.ratio(mine, n_bytes).metric(),
        # Paired: both models are scored on the same texts, so their difference is much surer.
        "bits_per_byte_change": statistics.ratio(mine - reference, n_bytes).metric(),
        "top1_agreement": same.metric(),
        "kl_bits_per_token": diverged.metric(),
    }

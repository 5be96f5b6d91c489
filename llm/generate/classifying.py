# SPDX-License-Identifier: Apache-2.0
"""Classes of texts and of words, from models with a classification head."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm.errors import ConfigError

Answer = tuple[str, float]  # label, probability


def _name(lm: Any, index: int) -> str:
    return lm.config.labels[index] if lm.config.labels else str(index)


def _ids(lm: Any, pieces: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the ids of [start] pieces [end], and where each piece begins, as in training."""
    tokenizer = lm.tokenizer
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids, places = ([start] if lm.starts_texts else []), []
    for number, piece in enumerate(pieces):
        places.append(len(ids))
        ids += tokenizer.encode(f" {piece}" if number else piece)
    return ([*ids, tokenizer.eos_id] if lm.ends_texts or lm.step is not None else ids), places


def classify(lm: Any, texts: Sequence[Any]) -> list[Any]:
    """Classify texts, or the words of texts given as lists; see `LanguageModel.classify`."""
    if not lm.config.classifies:
        raise ConfigError(
            "The model has no classification head.",
            "Train one with configs/posttrain/classify_tiny.py.",
        )
    words = lm.config.head == "token"
    if any(isinstance(text, str) == words for text in texts):
        raise ConfigError(
            f"The model classifies {'the words of texts' if words else 'whole texts'}.",
            "Give lists of words." if words else "Give strings.",
        )
    return [_one(lm, list(text) if words else [text]) for text in texts]


def _one(lm: Any, pieces: list[str]) -> list[Answer] | Answer:
    ids, places = _ids(lm, pieces)
    longest = lm.config.max_length
    ids = ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]
    chances = np.asarray(jax.nn.softmax(lm.logits(np.asarray([ids]))[0], axis=-1))
    best = [(_name(lm, int(row.argmax())), float(row.max())) for row in chances]
    if lm.config.head == "token":
        return [best[min(place, len(ids) - 1)] for place in places]
    # A decoder has read a text at its last token; an encoder gathers it at its first.
    return best[-1 if lm.config.causal else 0]

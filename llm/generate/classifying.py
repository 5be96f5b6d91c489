# SPDX-License-Identifier: Apache-2.0
"""Classes of texts and of words, and scores of answers, from models with such a head."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError
from llm.generate.buckets import bucket, count_program, layout, row_count
from llm.generate.buckets import parts as batch_parts
from llm.models import pooling

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
    if not lm.config.classifies or lm.config.n_classes == 1:
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


def scores(lm: Any, answers: Sequence[Any], batch: int = 16) -> np.ndarray:
    """Score answers with a reward model; see `LanguageModel.scores`."""
    if lm.config.head != "sequence" or lm.config.n_classes != 1:
        raise ConfigError(
            "The model has no score head.", "Train one with configs/posttrain/reward.py."
        )
    listed = [_answer_ids(lm, answer)[: lm.config.max_length] for answer in answers]
    found = np.zeros(len(listed), np.float32)
    order = sorted(range(len(listed)), key=lambda i: len(listed[i]))  # alike in length: no padding
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        length = bucket(max(len(listed[i]) for i in places), 16, lm.config.max_length)
        rows = row_count(len(places), batch_parts(lm.mesh))
        tokens, segments = np.zeros((2, rows, length), np.int32)
        for row, i in enumerate(places):
            tokens[row, : len(listed[i])] = listed[i]
            segments[row, : len(listed[i])] = 1
        with layout(lm.mesh):
            values = _scores(lm.model, lm.params, jnp.asarray(tokens), jnp.asarray(segments))
        found[places] = np.asarray(values)[: len(places)]
    return found


@functools.partial(jax.jit, static_argnames=("model",))
def _scores(model: Any, params: Any, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    count_program("scores")
    return pooling.scores(model, params, tokens, segments)


def _answer_ids(lm: Any, answer: Any) -> list[int]:
    """Return the ids that a reward model reads: of a whole chat up to its stop token, or as given.

    Raises:
        ConfigError: there is nothing to score, or an id is beyond the vocabulary.
    """
    chat = isinstance(answer, Sequence) and len(answer) and isinstance(answer[0], Mapping)
    if chat:
        return lm.tokenizer.encode_answer(list(answer))[0]
    ids = [int(i) for i in answer] if not isinstance(answer, str) else []
    if not ids or not 0 <= min(ids) <= max(ids) < lm.config.vocab_size:
        raise ConfigError(
            f"An answer to score has no ids within 0..{lm.config.vocab_size - 1}.",
            "Give chats (lists of messages), or lists of this model's token ids.",
        )
    return ids

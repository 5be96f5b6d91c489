# SPDX-License-Identifier: Apache-2.0
"""Interpolated Kneser-Ney n-gram language models over token ids, in sorted NumPy arrays.

Chen & Goodman 1999, with three discounts per order. An n-gram is numbered by its place in the
sorted keys (number of its first n-1 tokens) x (V + 1) + last token, so that any order fits in
64 bits and every lookup is one binary search.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llm.errors import DataError

Tokens = Sequence[int] | np.ndarray


class Level(NamedTuple):
    """Hold what one order needs.

    keys int64 [grams], sorted: context number x (V + 1) + token. discounted float64 [grams]:
    the count less its discount. total, backoff float64 [contexts]: sum of counts, and the
    weight of the lower order.
    """

    keys: np.ndarray
    discounted: np.ndarray
    total: np.ndarray
    backoff: np.ndarray


class Model(NamedTuple):
    """An n-gram model: `levels[n - 1]` holds the n-grams."""

    vocab_size: int
    order: int
    levels: tuple[Level, ...]
    tokens: int

    @property
    def n_grams(self) -> int:
        """Return the number of stored n-grams of all orders."""
        return sum(len(level.keys) for level in self.levels)


def train(sequences: Iterable[Tokens], vocab_size: int, order: int = 5) -> Model:
    """Count n-grams and set discounts.

    Every sequence is preceded by order - 1 start marks, which are never predicted; end marks are
    the caller's. The highest order uses counts, the lower ones the number of different left
    neighbours.

    Args:
        sequences: token ids below `vocab_size`, one sequence per document.
        vocab_size: V; the lowest level is uniform over it.
        order: longest n-gram.

    Raises:
        DataError: there are no tokens, or one lies outside the vocabulary.
    """
    parts = [np.asarray(sequence, np.int64) for sequence in sequences]
    stream, predicted = _stream(parts, vocab_size, order)
    if not predicted.any():
        raise DataError("There are no tokens to train an n-gram model on.", "Check the corpus.")
    width = vocab_size + 1
    numbers = np.zeros(len(stream), np.int64)  # of the n-gram that ends at each position
    grams: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # keys, first position, number
    for _ in range(order):
        before = np.zeros_like(numbers)
        before[1:] = numbers[:-1]
        keys, first, numbers = np.unique(
            before * width + stream, return_index=True, return_inverse=True
        )
        numbers = numbers.astype(np.int64)
        grams.append((keys, first, numbers))
    levels: list[Level] = []
    counts = np.bincount(grams[-1][2][predicted], minlength=len(grams[-1][0]))
    for n in range(order, 0, -1):
        keys, first, _ = grams[n - 1]
        contexts = len(grams[n - 2][0]) if n > 1 else 1
        levels.append(_level(keys, counts, contexts, width))
        if n > 1:  # each different n-gram is one left neighbour of the (n-1)-gram it ends with
            shorter_keys, _, shorter = grams[n - 2]
            distinct = first[counts > 0]
            counts = np.bincount(shorter[distinct], minlength=len(shorter_keys))
    return Model(vocab_size, order, tuple(reversed(levels)), int(predicted.sum()))


def log_probs(model: Model, sequence: Tokens) -> np.ndarray:
    """Return the natural-log probability of every token given those before it, float64 [T]."""
    return np.log(_probs(model, [np.asarray(sequence, np.int64)]))


def log_probs_batch(model: Model, sequences: Iterable[Tokens]) -> list[np.ndarray]:
    """Return `log_probs` of many sequences in one pass."""
    parts = [np.asarray(sequence, np.int64) for sequence in sequences]
    joined = np.log(_probs(model, parts))
    return np.split(joined, np.cumsum([len(part) for part in parts])[:-1]) if parts else []


def bits_per_token(model: Model, sequences: Iterable[Tokens]) -> float:
    """Return the mean number of bits per token."""
    parts = log_probs_batch(model, sequences)
    return float(-np.concatenate(parts).mean() / np.log(2))


def _stream(parts: list[np.ndarray], vocab_size: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Join sequences, each after its start marks; tell which positions are predicted."""
    lengths = np.array([len(part) for part in parts], np.int64)
    predicted = np.ones(int(lengths.sum()) + (order - 1) * len(parts), bool)
    starts = np.cumsum(lengths + order - 1) - lengths - order + 1
    for offset in range(order - 1):
        predicted[starts + offset] = False
    stream = np.full(len(predicted), vocab_size, np.int64)
    if parts:
        stream[predicted] = np.concatenate(parts)
    tokens = stream[predicted]
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocab_size):
        raise DataError(
            f"A token id lies outside the vocabulary of {vocab_size}.",
            "Use the tokenizer that the tokens were made with.",
        )
    return stream, predicted


def _level(keys: np.ndarray, counts: np.ndarray, contexts: int, width: int) -> Level:
    """Discount one order's counts and add up its contexts."""
    discounts = _discounts(counts)
    discount = discounts[np.minimum(counts, 3)]
    context = keys // width
    total = np.bincount(context, counts, minlength=contexts)
    mass = np.bincount(context, discount, minlength=contexts)
    backoff = np.divide(mass, total, out=np.ones(contexts), where=total > 0)
    return Level(keys, counts - discount, total, backoff)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Return the discounts of counts 0, 1, 2, and 3 or more (Chen & Goodman's estimate).

    Where too few n-grams occur once or twice to estimate them, one discount serves all.
    """
    seen = np.bincount(np.minimum(counts, 5), minlength=5)
    n1, n2, n3, n4 = (float(seen[k]) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    if not min(n1, n2, n3, n4):
        return np.array([0.0, y, y, y])
    values = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([0.0, *(float(np.clip(v, 0.05, k)) for k, v in enumerate(values, 1))])


def _probs(model: Model, parts: list[np.ndarray]) -> np.ndarray:
    """Return the probability of every predicted token of the joined sequences."""
    stream, predicted = _stream(parts, model.vocab_size, model.order)
    width = model.vocab_size + 1
    here = np.flatnonzero(predicted)
    tokens = stream[here]
    probs = np.full(len(here), 1.0 / model.vocab_size)
    numbers = np.zeros(len(stream), np.int64)  # of the (n-1)-gram that ends at each position
    for level in model.levels:
        context = np.zeros_like(numbers)
        context[1:] = numbers[:-1]
        probs = _interpolate(level, context[here], tokens, probs, width)
        numbers = np.where(context >= 0, _find(level.keys, context * width + stream), -1)
    return probs


def _interpolate(
    level: Level, context: np.ndarray, tokens: np.ndarray, lower: np.ndarray, width: int
) -> np.ndarray:
    """Mix one order with the lower one; where the context is unseen the lower one stands."""
    known = context >= 0
    total = np.where(known, level.total[context], 0.0)
    used = total > 0
    gram = _find(level.keys, context * width + tokens)
    count = np.where((gram >= 0) & used, level.discounted[gram], 0.0)
    mixed = count / np.where(used, total, 1.0) + level.backoff[context] * lower
    return np.where(used, mixed, lower)


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the place of each wanted key in the sorted keys, or -1."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)

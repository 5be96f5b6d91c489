# SPDX-License-Identifier: Apache-2.0
"""The n-gram model against a brute-force Kneser-Ney over dictionaries."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from llm.errors import DataError
from llm.text import ngrams

V = 7
START = V


def toy(seed=0, count=12):
    rng = np.random.default_rng(seed)
    return [rng.choice(V, rng.integers(1, 40), p=rng.dirichlet(np.ones(V))) for _ in range(count)]


class BruteForce:
    """Kneser-Ney straight from its definition, with dictionaries of tuples."""

    def __init__(self, sequences, order):
        self.order = order
        raw = Counter()
        for sequence in sequences:
            padded = [START] * (order - 1) + [int(t) for t in sequence]
            for end in range(order - 1, len(padded)):
                raw[tuple(padded[end - order + 1 : end + 1])] += 1
        self.counts = {order: raw}
        for n in range(order - 1, 0, -1):
            left = defaultdict(set)
            for gram in self.counts[n + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[n] = Counter({gram: len(some) for gram, some in left.items()})

    def discount(self, n, count):
        of = Counter(self.counts[n].values())
        if count == 0:
            return 0.0
        y = of[1] / (of[1] + 2 * of[2]) if of[1] and of[2] else 0.5
        if not (of[1] and of[2] and of[3] and of[4]):
            return y
        k = min(count, 3)
        return min(max(k - (k + 1) * y * of[k + 1] / of[k], 0.05), k)

    def prob(self, token, context):
        history = [START] * (self.order - 1) + [int(t) for t in context]
        prob = 1 / V
        for n in range(1, self.order + 1):
            before = tuple(history[len(history) - n + 1 :])
            counts = {g[-1]: c for g, c in self.counts[n].items() if g[:-1] == before}
            total = sum(counts.values())
            if not total:
                break
            mass = sum(self.discount(n, c) for c in counts.values())
            count = counts.get(token, 0)
            prob = (count - self.discount(n, count)) / total + mass / total * prob
        return prob


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_equal_brute_force(order):
    sequences = toy()
    model = ngrams.train(sequences, V, order)
    reference = BruteForce(sequences, order)
    for sequence in [*sequences[:3], *toy(seed=9, count=2)]:
        expected = [reference.prob(int(t), sequence[:i]) for i, t in enumerate(sequence)]
        np.testing.assert_allclose(ngrams.log_probs(model, sequence), np.log(expected), atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_context_sums_to_one(order):
    model = ngrams.train(toy(), V, order)
    contexts = [[], [1], [1, 2], [6, 6, 6, 6], *[list(s[:9]) for s in toy(seed=3)]]
    for context in contexts:
        logs = [ngrams.log_probs(model, [*context, token])[-1] for token in range(V)]
        np.testing.assert_allclose(np.exp(logs).sum(), 1.0, atol=1e-12)


def test_batch_equals_single_and_empty_sequences_pass():
    model = ngrams.train([*toy(), []], V, 3)
    sequences = [[1, 2, 3], [], [4]]
    for one, many in zip(sequences, ngrams.log_probs_batch(model, sequences), strict=True):
        np.testing.assert_array_equal(ngrams.log_probs(model, one), many)


def test_large_vocabulary_and_unseen_tokens():
    rng = np.random.default_rng(1)
    model = ngrams.train([rng.integers(0, 1000, 5000)], 300_000, 5)
    scores = ngrams.log_probs(model, [299_999, 5, 299_998])
    assert np.isfinite(scores).all() and scores[0] < np.log(1e-3)


def test_learns_a_pattern_better_than_lower_orders():
    sequence = np.tile([0, 1, 2, 0, 1, 3], 200)
    bits = [ngrams.bits_per_token(ngrams.train([sequence], V, n), [sequence[:60]]) for n in (1, 5)]
    assert bits[1] < 0.3 < bits[0]


def test_bad_tokens_and_no_tokens_are_refused():
    with pytest.raises(DataError, match="outside the vocabulary"):
        ngrams.train([[0, V]], V, 2)
    with pytest.raises(DataError, match="no tokens"):
        ngrams.train([[]], V, 2)

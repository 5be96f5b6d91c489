# SPDX-License-Identifier: Apache-2.0
"""Kappas against published examples and a plain count of pairs of judges."""

import itertools
import math

import numpy as np
import pytest

from llm.core import agreement

# Fleiss (1971), table 1's textbook form: 10 subjects, 14 raters, 5 categories: kappa 0.210
TEXTBOOK = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]


def test_cohen_of_a_published_table():
    # 50 proposals: both yes 20, both no 15, yes/no 5, no/yes 10: kappa 0.40
    first = ["y"] * 25 + ["n"] * 25
    second = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert agreement.cohen(first, second) == pytest.approx(0.4)
    assert agreement.cohen(first, first) == 1
    assert agreement.cohen([0, 1], [1, 0]) == pytest.approx(-1)
    assert math.isnan(agreement.cohen([], [])) and math.isnan(agreement.cohen([1], [1]))


def test_fleiss_of_a_published_table():
    assert agreement.fleiss(TEXTBOOK) == pytest.approx(0.210, abs=5e-4)
    assert math.isnan(agreement.fleiss([[2, 0], [2, 0]]))
    assert agreement.fleiss([[2, 0], [0, 2], [1, 0]]) == pytest.approx(1)


def test_fleiss_of_unequal_numbers_counts_pairs():
    rng = np.random.default_rng(0)
    votes = [rng.integers(0, 3, size=rng.integers(1, 6)).tolist() for _ in range(60)]
    kept = [v for v in votes if len(v) > 1]
    same = [np.mean([a == b for a, b in itertools.combinations(v, 2)]) for v in kept]
    everything = [c for v in kept for c in v]
    chance = sum((everything.count(c) / len(everything)) ** 2 for c in range(3))
    counts = [[v.count(c) for c in range(3)] for v in votes]
    expected = (np.mean(same) - chance) / (1 - chance)
    assert agreement.fleiss(counts) == pytest.approx(expected, abs=1e-12)


def test_report_compares_what_two_have_seen():
    found = agreement.report({"a": {1: "x", 2: "y", 3: "x"}, "b": {2: "y", 3: "z", 4: "x"}})
    assert found["items"] == 2 and found["agreement"] == 0.5
    assert found["pairs"] == [
        {"judges": ["a", "b"], "items": 2, "agreement": 0.5, "cohen": pytest.approx(1 / 3)}
    ]
    alone = agreement.report({"a": {1: "x"}})
    assert alone["items"] == 0 and alone["fleiss"] is None and alone["pairs"] == []

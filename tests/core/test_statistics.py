# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from llm.core import statistics


# Limits printed in R. G. Newcombe (1998), Statistics in Medicine 17, table I, method 3.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_limits(hits, n, low, high):
    assert statistics.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation_and_mirrors():
    z = 1.959963984540054
    for hits, n in ((3, 17), (50, 100), (99, 100)):
        for limit in statistics.wilson(hits, n):
            assert abs(hits / n - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / n))
        low, high = statistics.wilson(hits, n)
        assert statistics.wilson(n - hits, n) == pytest.approx((1 - high, 1 - low))
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    assert statistics.wilson(5, 5)[1] == 1.0


def test_wilson_covers_the_truth():
    n = 60
    limits = [statistics.wilson(hits, n) for hits in range(n + 1)]
    coverage = [
        sum(
            math.comb(n, hits) * p**hits * (1 - p) ** (n - hits)
            for hits, (low, high) in enumerate(limits)
            if low <= p <= high
        )
        for p in np.linspace(0.05, 0.95, 181)
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.005)


def test_mean_and_proportion_by_hand():
    estimate = statistics.mean([1, 2, 4])
    assert estimate.value == pytest.approx(7 / 3)
    assert estimate.stderr == pytest.approx(math.sqrt(7 / 3) / math.sqrt(3))
    assert math.isnan(statistics.mean([3.0]).stderr)
    entry = statistics.proportion([True] * 30 + [False] * 10, chance=0.25)
    assert entry["value"] == 0.75
    assert entry["above_chance"] and entry["chance"] == 0.25
    assert not statistics.proportion([True, False, False, True], chance=0.25)["above_chance"]


def bootstrap(statistic, n, seed, rounds=1000):
    """Estimate a statistic of n items by resampling them with replacement."""
    generator = np.random.default_rng(seed)
    draws = [statistic(generator.integers(0, n, n)) for _ in range(rounds)]
    return statistics.Estimate(statistic(np.arange(n)), np.std(draws, ddof=1))


def test_ratio_error_agrees_with_the_bootstrap():
    generator = np.random.default_rng(1)
    sizes = generator.integers(20, 200, 400)
    losses = sizes * 0.7 + generator.normal(0, 8, 400)
    estimate = statistics.ratio(losses, sizes)
    drawn = bootstrap(lambda i: losses[i].sum() / sizes[i].sum(), 400, seed=2)
    assert estimate.value == drawn.value
    assert estimate.stderr == pytest.approx(drawn.stderr, rel=0.1)
    power = statistics.exponential(estimate)
    exponent = bootstrap(lambda i: math.exp(losses[i].sum() / sizes[i].sum()), 400, seed=3)
    assert power.stderr == pytest.approx(exponent.stderr, rel=0.1)
    low, high = statistics.perplexity(estimate)["interval"]
    assert math.log(high) + math.log(low) == pytest.approx(2 * estimate.value)
    assert math.log(high) - math.log(low) == pytest.approx(2 * 1.959964 * estimate.stderr)


def test_ratio_is_exact_where_items_agree():
    estimate = statistics.ratio([2.0, 4.0, 6.0], [1, 2, 3])
    assert estimate == (2.0, 0.0)

# SPDX-License-Identifier: Apache-2.0
"""Sampling against float64 brute force and against the frequencies it promises."""

import jax
import numpy as np
import pytest

from llm.errors import ConfigError
from llm.generate import sampling
from llm.generate.sampling import Settings

VOCABULARY = 37
transform, sample = jax.jit(sampling.transform), jax.jit(sampling.sample)
keep_top = jax.jit(sampling.keep_top)


def brute_force(logits, seen, s):
    """Return the probabilities a row is sampled with, one token at a time in float64."""
    x = np.asarray(logits, np.float64).copy()
    for token, value in s.logit_bias:
        x[token] += value
    for token in np.flatnonzero(seen):
        x[token] = (
            x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
        )
    if s.temperature > 0:
        x = x / s.temperature
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if s.top_k > 0 and s.temperature > 0:
        order = order[: s.top_k]
    if s.top_p < 1 and s.temperature > 0:
        mass = np.exp(x[order] - x[order[0]])
        mass /= mass.sum()
        total, kept = 0.0, []
        for token, p in zip(order, mass, strict=True):
            kept.append(token)
            total += p
            if total >= s.top_p:
                break
        order = kept
    peak = np.exp(x[order[0]])
    order = [i for i in order if np.exp(x[i]) >= s.min_p * peak]
    p = np.zeros(len(x))
    p[order] = np.exp(x[order] - x[order[0]])
    return p / p.sum()


CASES = [
    Settings(),
    Settings(temperature=1.0),
    Settings(temperature=0.7, top_k=5),
    Settings(temperature=1.3, top_p=0.6),
    Settings(temperature=1.0, top_k=9, top_p=0.5),
    Settings(temperature=0.9, min_p=0.2),
    Settings(temperature=1.0, repetition_penalty=1.7),
    Settings(temperature=1.0, logit_bias=((3, 5.0), (4, -50.0))),
    Settings(temperature=2.0, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=0.8),
]


def test_transform_is_the_brute_force_distribution_row_by_row():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (len(CASES), VOCABULARY)).astype(np.float32)
    seen = rng.random((len(CASES), VOCABULARY)) < 0.3
    got = jax.nn.softmax(transform(logits, sampling.rows(CASES), seen), axis=-1)
    for row, case in enumerate(CASES):
        wanted = brute_force(logits[row], seen[row], case)
        np.testing.assert_allclose(got[row], wanted, atol=2e-6, err_msg=str(case))
        assert np.array_equal(np.asarray(got[row]) > 0, wanted > 0), case


def test_rows_without_filters_are_unchanged_to_the_bit_beside_rows_with_them():
    logits = np.random.default_rng(1).normal(0, 3, (2, VOCABULARY)).astype(np.float32)
    plain = Settings(temperature=1.0)
    both = transform(logits, sampling.rows([plain, Settings(1.0, 3, 0.5)]))
    assert np.array_equal(both[0], logits[0])
    assert np.isfinite(both[1]).sum() <= 3


def test_nucleus_is_the_smallest_set_that_reaches_p_and_ties_prefer_lower_ids():
    p = np.float32([[0.4, 0.3, 0.2, 0.1]])
    for wanted, top_p in ((1, 0.39), (2, 0.41), (3, 0.71), (4, 0.95)):
        kept = keep_top(np.log(p), np.array([0]), np.float32([top_p]))
        assert np.isfinite(kept).sum() == wanted
    equal = keep_top(np.zeros((1, 6), np.float32), np.array([2]), np.float32([1.0]))
    assert np.flatnonzero(np.isfinite(equal[0])).tolist() == [0, 1]


def test_greedy_takes_the_argmax_and_reports_the_models_own_logprob():
    logits = np.random.default_rng(2).normal(0, 2, (3, VOCABULARY)).astype(np.float32)
    tokens, logprobs = sample(
        logits, sampling.rows([Settings(seed=i) for i in range(3)]), np.arange(3)
    )
    x = logits.astype(np.float64)
    wanted = x.max(1) - np.log(np.exp(x).sum(1))
    assert tokens.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(logprobs, wanted, atol=1e-5)


def test_frequencies_match_the_distribution():
    logits = np.random.default_rng(3).normal(0, 1.5, VOCABULARY).astype(np.float32)
    case = Settings(temperature=0.8, top_k=12, top_p=0.95, seed=7)
    n = 20_000
    many = sampling.rows([case] * n)
    tokens, _ = sample(np.tile(logits, (n, 1)), many, np.arange(n))
    counts = np.bincount(tokens, minlength=VOCABULARY)
    p = brute_force(logits, np.zeros(VOCABULARY, bool), case)
    assert counts[p == 0].sum() == 0
    kept = p > 0
    statistic = ((counts[kept] - n * p[kept]) ** 2 / (n * p[kept])).sum()
    degrees = kept.sum() - 1
    # Wilson-Hilferty: the cube root of chi squared / k is nearly normal.
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / np.sqrt(2 / (9 * degrees))
    assert abs(z) < 4, (statistic, degrees)


def test_a_rows_draw_depends_on_its_seed_and_position_only():
    logits = np.random.default_rng(4).normal(0, 1, (1, VOCABULARY)).astype(np.float32)
    alone, _ = sample(logits, sampling.rows([Settings(1.0, seed=5)]), np.array([9]))
    crowd = [Settings(1.0, seed=1), Settings(0.0), Settings(1.0, seed=5), Settings(1.5, 3)]
    beside, _ = sample(np.tile(logits, (4, 1)), sampling.rows(crowd), np.array([1, 2, 9, 4]))
    assert alone[0] == beside[2]
    draws = [
        int(sample(logits, sampling.rows([Settings(1.0, seed=s)]), np.array([9]))[0][0])
        for s in range(12)
    ]
    assert len(set(draws)) > 3


@pytest.mark.parametrize(
    "bad",
    [
        Settings(temperature=-1),
        Settings(top_k=-1),
        Settings(top_p=0.0),
        Settings(top_p=1.5),
        Settings(min_p=2.0),
        Settings(repetition_penalty=0.0),
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match="out of range"):
        bad.validate()

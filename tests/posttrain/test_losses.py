# SPDX-License-Identifier: Apache-2.0
"""Every loss and its gradient in the logits against TRL's own code on 100 random batches.

`tests/goldens/make_posttrain.py` stored what TRL computes in float64. The whole objective is
compared: a stand-in takes the model's place and answers with given logits.
"""

import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import ConfigError
from llm.posttrain import pair_losses, preference
from llm.train import distill, losses

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
SPEC = importlib.util.spec_from_file_location("posttrain_cases", GOLDENS / "posttrain_cases.py")
cases = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(cases)
NUMBERS = range(cases.BATCHES)


class Stub:
    """Stand in for a Transformer: a text's first token says which row of params["logits"] it is."""

    config = SimpleNamespace(stochastic=False, adapter=SimpleNamespace(name="none"))

    def apply(self, variables, tokens, method, **inputs):
        if method == "head":
            return tokens
        return variables["params"]["logits"][tokens[:, 0]], {}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / cases.PATH) as file:
        return dict(file)


@pytest.fixture(scope="module")
def batches():
    return [cases.batch(number) for number in NUMBERS]


def close(found, golden):
    """Compare [100] rows of loss, norm of the gradient and projections, at 1e-5.

    The root mean square of the projections' differences is the norm of the gradients' difference.
    """
    found = np.array(found)
    np.testing.assert_allclose(found[:, :2], golden[:, :2], rtol=1e-5, atol=0)
    apart = np.sqrt(np.mean((found[:, 2:] - golden[:, 2:]) ** 2, axis=1)) / golden[:, 1]
    assert apart.max() <= 1e-5, apart.max()


def measure(loss, params, batches, prepared):
    """Return loss, gradient norm and projections of every batch, from one compiled program."""
    step = jax.jit(jax.value_and_grad(loss))
    rows = []
    for number, (data, batch) in enumerate(zip(batches, prepared, strict=True)):
        value, gradient = step(params(data), data, batch)
        rows.append(np.concatenate([[value], cases.project(number, gradient)]))
    return rows


def rows_of(data, rows, prefix):
    """Return the fields of some rows as a side of a batch."""
    tokens = np.repeat(np.asarray(rows)[:, None], cases.T, axis=1).astype(np.int32)
    named = {"tokens": tokens, "targets": data["targets"], "weights": data["weights"]}
    named["segments"] = data["inside"]
    return {prefix + k: v if k == "tokens" else v[rows] for k, v in named.items()}


def mean(sums):
    return sums["loss"][0] / sums["loss"][1]


@pytest.mark.parametrize("case", cases.PAIRS)
def test_pairs(case, golden, batches):
    name, options = cases.PAIRS[case]
    objective = getattr(preference, name)(Stub(), **options)
    n = cases.B
    prepared = [
        rows_of(data, np.arange(n), "chosen_") | rows_of(data, np.arange(n, 2 * n), "rejected_")
        for data in batches
    ]

    def loss(logits, data, batch):
        frozen = {"logits": data["reference"]}
        return mean(objective.loss({"logits": logits}, frozen, batch, None))

    close(measure(loss, lambda data: data["logits"], batches, prepared), golden[case])


@pytest.mark.parametrize("case", cases.SINGLES)
def test_single_answers(case, golden, batches):
    objective = preference.kto(Stub(), **cases.SINGLES[case])
    prepared = []
    for data in batches:
        rows = np.arange(2 * cases.B)
        kept = np.flatnonzero(data["weights"].any(1))
        other = rows.copy()
        other[kept] = np.roll(kept, 1)
        both = rows_of(data, rows, "") | rows_of(data, other, "kl_")
        prepared.append(both | {"labels": data["desirable"].astype(np.int32)})

    def loss(logits, data, batch):
        frozen = {"logits": data["reference"]}
        return mean(objective.loss({"logits": logits}, frozen, batch, None))

    close(measure(loss, lambda data: data["logits"], batches, prepared), golden[case])


@pytest.mark.parametrize("case", cases.REWARDS)
def test_reward_models(case, golden, batches):
    options = cases.REWARDS[case]

    def loss(scores, data, batch):
        margins = options.get("margin", 0.0) * data["margins"]
        each = pair_losses.bradley_terry(*scores, margins, options.get("centre", 0.0))
        return mean(pair_losses.pair_sums(each, *scores, jnp.ones(cases.B, bool)))

    found = measure(loss, lambda data: data["scores"], batches, batches)
    close(found, golden[case])


@pytest.mark.parametrize("case", cases.DIVERGENCES)
def test_divergences(case, golden, batches):
    options = cases.DIVERGENCES[case]

    def loss(logits, data, batch):
        own, other = (
            jax.nn.log_softmax(x / options["temperature"]) for x in (logits, data["reference"])
        )
        return (distill.divergence(own, other, options["beta"]) * data["weights"]).sum()

    close(measure(loss, lambda data: data["logits"], batches, batches), golden[case])


def test_the_tokens_that_are_not_stored_count_together():
    """Divergences of the k likeliest and the rest: exact in float64, and a bound from below."""
    rng = np.random.default_rng(0)
    s, t = (np.asarray(jax.nn.log_softmax(rng.normal(size=(5, 9)) * 2)) for _ in range(2))
    ids = np.argsort(-t, axis=-1)[:, :4]
    own, other = distill.gathered(s, ids), distill.gathered(t, ids)
    p, q = np.exp(np.take_along_axis(t, ids, 1)), np.exp(np.take_along_axis(s, ids, 1))
    p, q = (np.append(x, 1 - x.sum(1, keepdims=True), axis=1) for x in (p, q))
    np.testing.assert_allclose(
        distill.divergence(own, other, 0.0), (p * np.log(p / q)).sum(1), rtol=2e-5
    )
    for beta in (0.0, 0.3, 1.0):
        whole = distill.divergence(s, t, beta)
        assert (distill.divergence(own, other, beta) <= whole + 1e-6).all()
    full = np.argsort(-t, axis=-1)
    same = distill.divergence(distill.gathered(s, full), distill.gathered(t, full), 0.5)
    np.testing.assert_allclose(same, distill.divergence(s, t, 0.5), rtol=1e-4, atol=1e-6)


def test_log1mexp_keeps_its_digits():
    x = -np.geomspace(1e-6, 40, 50).astype(np.float32)
    expected = np.log1p(-np.exp(x.astype(np.longdouble))).astype(float)
    np.testing.assert_allclose(losses.log1mexp(x), expected, rtol=1e-6, atol=0)
    slope = jax.vmap(jax.grad(losses.log1mexp))(x)
    np.testing.assert_allclose(slope, -1 / np.expm1(-x.astype(float)), rtol=1e-5)


def test_blank_rows_count_for_nothing_in_a_reward_batch():
    scores = jnp.array([[1.0, np.inf], [0.0, 2.0]])
    real = jnp.array([True, False])
    each = pair_losses.bradley_terry(*scores)
    sums = pair_losses.pair_sums(each, *scores, real)
    assert float(sums["loss"][1]) == 1
    np.testing.assert_allclose(sums["loss"][0], np.log1p(np.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (functools.partial(preference.dpo, loss="sigmoit"), "did you mean|sigmoid"),
        (functools.partial(preference.dpo, loss="exo"), "above 0 for exo"),
        (functools.partial(preference.dpo, reference="base"), "without its adapters"),
        (functools.partial(preference.cpo, sft_mean="rows"), "sft_mean"),
        (functools.partial(distill.distill, beta=2.0), "beta from 0 to 1"),
    ],
)
def test_wrong_options_are_named(build, words):
    with pytest.raises(ConfigError, match=words):
        build(Stub())

# SPDX-License-Identifier: Apache-2.0
"""Policy losses and advantages against TRL's own code (stored) and plain loops in float64."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import ConfigError
from llm.posttrain import advantages, policy, policy_loss
from llm.train import losses
from tests.goldens import rl_cases

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "rl"


def compute(name, case):
    """Return the jitted (loss, gradients to logits and values) of our losses for a case."""

    def loss(logits, values, x):
        logps = losses.token_logprobs(logits, x["tokens"])
        logs = jax.nn.log_softmax(logits, axis=-1)
        rows = {"weights": x["mask"], "old_logps": x["old_logps"], "share": x["share"]}
        rows["advantages"] = x["token_advantages" if case.get("tokens") else "advantages"]
        if case["coef"]:
            rows["ref_logps"] = x["ref_logps"]
            rows["kl_coef"] = jnp.full(len(x["mask"]), case["coef"], jnp.float32)
        if case.get("correction"):
            rows["correction"] = x["correction"]
        options = dict(case["options"])
        clip, weight = options.pop("value_clip", 0.0), options.pop("value_weight", 0.0)
        entropies = -(jnp.exp(logs) * logs).sum(axis=-1)
        sums = policy.policy_sums(
            logps, entropies, rows, loss=case["loss"], length=rl_cases.LENGTH, **options
        )
        if name == "ppo":
            rows |= {"old_values": x["old_values"], "returns": x["returns"]}
            rows["value_weights"] = x["value_mask"]
            sums = policy.with_values(sums, values, rows, clip=clip, weight=weight)
        total, count = sums["loss"]
        return total / jnp.maximum(count, 1e-6)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize("name", rl_cases.CASES)
def test_losses_and_gradients_are_those_of_trl(name):
    golden = np.load(GOLDENS / f"{name}.npz")
    measure = compute(name, rl_cases.CASES[name])
    empty = 0
    for i in range(rl_cases.BATCHES):
        batch = rl_cases.batch(name, i)
        empty += int((batch["mask"].sum(axis=1) == 0).any())
        x = {
            k: jnp.asarray(v, jnp.int32 if k == "tokens" else jnp.float32) for k, v in batch.items()
        }
        loss, grads = measure(x["logits"], x["values"], x)
        np.testing.assert_allclose(loss, golden["loss"][i], rtol=1e-5, atol=2e-6)
        for key, grad in zip(("logits", "values"), grads, strict=True):
            if f"d_{key}" not in golden:
                continue
            want = golden[f"d_{key}"][i]
            size = max(1e-3, np.abs(want).max())
            assert np.abs(rl_cases.project(grad) - want).max() <= 1e-5 * size
            if i < rl_cases.WHOLE:
                whole = golden[f"whole_{key}"][i]
                assert np.abs(grad - whole).max() <= 1e-5 * np.abs(whole).max() + 1e-9
    assert empty > 20  # rows of which nothing counts are among them


def judged(batch, kl, coef, group=1):
    """Return what advantages are made of, from a golden batch."""
    logps, ref = batch["old_logps"], batch["ref_logps"]
    far = np.asarray(policy_loss.kl(jnp.asarray(logps), jnp.asarray(ref), kl), np.float64)
    if kl == "k1":
        far = logps - ref
    return advantages.Judged(
        batch["scores"], coef * far * batch["mask"], batch["mask"], batch["old_values"], group
    )


@pytest.mark.parametrize("name", rl_cases.ADVANTAGES)
def test_gae_is_that_of_trls_ppo(name):
    golden, case = np.load(GOLDENS / f"{name}.npz"), rl_cases.ADVANTAGES[name]
    for i in range(rl_cases.BATCHES):
        batch = rl_cases.batch(name, i, filled=True)
        made = advantages.gae(
            judged(batch, case["kl"], case["trl_options"]["kl_coef"]), **case["options"]
        )
        np.testing.assert_allclose(made.advantages, golden["advantages"][i], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(
            made.returns * made.mask, golden["returns"][i] * made.mask, rtol=1e-5, atol=2e-6
        )


def test_gae_whitening_and_kl_are_the_formulas():
    """The definitions, as sums over the future in float64."""
    rng = np.random.default_rng(0)
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.97, 0.0)):
        rewards, values = rng.standard_normal((2, 3, 7))
        found = advantages.estimate(rewards, values, gamma, lam)
        for b in range(3):
            for t in range(7):
                deltas = [
                    rewards[b, s] + gamma * (values[b, s + 1] if s < 6 else 0.0) - values[b, s]
                    for s in range(t, 7)
                ]
                want = sum((gamma * lam) ** k * d for k, d in enumerate(deltas))
                assert abs(found[b, t] - want) <= 1e-6
    x, mask = rng.standard_normal((4, 5)), (rng.random((4, 5)) < 0.6).astype(float)
    chosen = x[mask > 0]
    for bessel in (True, False):
        var = chosen.var(ddof=int(bessel))
        want = (chosen - chosen.mean()) / np.sqrt(var + 1e-8)
        np.testing.assert_allclose(
            advantages.whiten(x, mask, bessel=bessel)[mask > 0], want, atol=1e-6
        )
        kept = advantages.whiten(x, mask, shift=False, bessel=bessel)
        np.testing.assert_allclose(kept[mask > 0], want + chosen.mean(), atol=1e-6)
        assert not kept[mask == 0].any()
    p, q = (np.log(rng.dirichlet(np.ones(6))) for _ in range(2))
    wanted = {"k1": p - q, "k2": (p - q) ** 2 / 2, "k3": np.exp(q - p) - 1 - (q - p)}
    for kind, want in wanted.items():
        found = policy_loss.kl(jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32), kind)
        np.testing.assert_allclose(found, want, atol=1e-6)
        assert not np.asarray(policy_loss.kl(found, found, kind)).any()
    exact = (np.exp(p) * (p - q)).sum()
    for kind in ("k1", "k3"):  # both are unbiased
        np.testing.assert_allclose((np.exp(p) * wanted[kind]).sum(), exact, atol=1e-6)


def test_group_baselines_and_answers_that_nobody_could_judge():
    scores = np.array([1.0, 0.0, 0.0, 1.0, 0.5, np.nan, 2.0, 0.5])
    mask = np.ones((8, 3))
    item = advantages.Judged(scores, np.full((8, 3), 0.1), mask, (), 4)
    made = advantages.group(item, epsilon=1e-4).advantages
    first = scores[:4]
    np.testing.assert_allclose(made[:4], (first - first.mean()) / (first.std(ddof=1) + 1e-4))
    known = np.array([0.5, 2.0, 0.5])
    np.testing.assert_allclose(made[[4, 6, 7]], (known - known.mean()) / (known.std(ddof=1) + 1e-4))
    assert made[5] == 0
    out = advantages.leave_one_out(item).advantages
    np.testing.assert_allclose(out[:4], [1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3])
    np.testing.assert_allclose(out[[4, 6, 7]], [0.5 - 1.25, 2 - 0.5, 0.5 - 1.25])
    assert out[5] == 0
    plain = advantages.group(item, scale="none").advantages
    np.testing.assert_allclose(plain[:4], first - 0.5)
    with pytest.raises(ConfigError, match=r"rollout\.advantages\.scale"):
        advantages.group(item, scale="groups")


def test_reinforce_pp_sums_what_follows():
    rng = np.random.default_rng(1)
    scores, penalties = rng.standard_normal(4), 0.1 * rng.standard_normal((4, 5))
    mask = (np.arange(5) < np.array([5, 2, 3, 1])[:, None]).astype(float)
    made = advantages.reinforce_pp(advantages.Judged(scores, penalties, mask, (), 2))
    want = np.array(
        [[scores[b] - (penalties[b] * mask[b])[t:].sum() for t in range(5)] for b in range(4)]
    )
    chosen = want[mask > 0]
    want = (want - chosen.mean()) / np.sqrt(chosen.var() + 1e-8) * mask
    np.testing.assert_allclose(made.advantages, want, atol=1e-9)


def test_dual_clip_bounds_the_loss_of_bad_answers():
    ratio = jnp.asarray([[0.5, 1.0, 5.0]])
    bad = jnp.full((1, 3), -2.0)
    options = {"clip": "ppo", "low": 0.2, "high": 0.2}
    plain, _ = policy_loss.surrogate(ratio, bad, ratio, **options)
    held, clipped = policy_loss.surrogate(ratio, bad, ratio, dual=3.0, **options)
    np.testing.assert_allclose(plain, [[1.6, 2.0, 10.0]], rtol=1e-6)
    np.testing.assert_allclose(held, [[1.6, 2.0, 6.0]], rtol=1e-6)
    assert clipped.tolist() == [[True, False, True]]


def test_importance_weights():
    mask = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    trainer = np.log(np.array([[0.5, 0.2, 0.9], [0.5, 0.5, 0.5]]))
    sampler = np.log(np.array([[0.1, 0.2, 0.1], [0.4, 0.5, 0.5]]))
    weigh = {
        name: advantages.importance(trainer, sampler, mask, name=name, most=3.0)
        for name in advantages.IMPORTANCE[1:]
    }
    np.testing.assert_allclose(weigh["token_truncate"], [[3, 1, 1], [1.25, 1, 1]])
    np.testing.assert_allclose(weigh["token_mask"], [[0, 1, 1], [1.25, 1, 1]])
    np.testing.assert_allclose(weigh["sequence_truncate"], [[3] * 3, [1.25] * 3])
    np.testing.assert_allclose(weigh["sequence_mask"], [[0] * 3, [1.25] * 3])


def test_the_kl_coefficient_follows_its_target():
    moved = advantages.adapt(0.1, 12.0, 100, target=6.0, horizon=1000)
    assert moved == pytest.approx(0.1 * (1 + 0.2 * 100 / 1000))
    moved = advantages.adapt(0.1, 5.7, 100, target=6.0, horizon=1000)
    assert moved == pytest.approx(0.1 * (1 - 0.05 * 0.1))

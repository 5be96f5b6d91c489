# SPDX-License-Identifier: Apache-2.0
"""Rollouts: what the policy draws, how it is judged, and that a killed run makes it again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm import main
from llm.core import config as configs
from llm.core.sharding import unbox
from llm.errors import ConfigError, DataError
from llm.generate.buckets import compiled
from llm.generate.loading import assemble
from llm.generate.requests import Completion
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.posttrain import answering, policy, prompts, rollout
from llm.tokenizers import load

LENGTH, BATCH, ANSWER = 32, 16, 6
SECTION = {
    "rewards": {"exact": {"weight": 1.0}, "length": {"weight": 0.5, "most": 3}},
    "gold": "exact",
    "group": 4,
    "minibatches": 2,
    "epochs": 2,
    "max_tokens": ANSWER,
    "kl": {"place": "reward", "coef": 0.1, "target": 2.0, "horizon": 100.0},
    "missing_eos_penalty": 1.0,
}


@pytest.fixture(scope="module")
def start():
    """A fresh model: it answers nonsense, mostly of full length."""
    tokenizer = load("byte")
    config = TransformerConfig(
        vocab_size=320, n_layers=2, d_model=32, n_heads=2, d_ff=64, max_length=64, value_head=True
    ).validate()
    tokens = jnp.zeros((1, 4), jnp.int32)
    params = unbox(Transformer(config).init(jax.random.key(1), tokens)["params"])
    noise = jax.random.normal(jax.random.key(2), (32,)) * 0.1
    params["value_head"]["kernel"] = noise  # values that differ
    return assemble(config, params, tokenizer, starts_texts=True)


def make(start, record=lambda line: None, seed=0, **more):
    tasks = prompts.puzzles(count=40, size=3, held_out=8)
    rules = rollout.check({**SECTION, "advantages": {"name": "gae"}, **more})
    return rollout.Rollouts(
        rules,
        tasks["train"],
        start,
        start.model,
        batch_size=BATCH,
        length=LENGTH,
        seed=seed,
        record=record,
    )


@pytest.fixture(scope="module")
def made(start):
    """A source, its steps, what it recorded and measured, and the programs compiled after the
    first rollout."""
    lines = []
    source = make(start, lines.append)
    steps = [source.batch(step, start.params) for step in range(4)]
    before = compiled()
    moved = jax.tree.map(lambda x: x * 1.3, start.params)
    steps += [source.batch(step, moved) for step in range(4, 8)]
    after = compiled()
    return source, steps, [json.loads(line) for line in lines], (before, after), moved


def test_the_sampler_and_training_agree(made):
    source, _, _, _, _ = made
    first, second = source._measured[:2]
    assert 0 < first["sampler_gap"] <= 1e-4 and second["sampler_gap"] <= 1e-4
    assert abs(first["kl"]) < 1e-6  # k1 of identical policies
    assert abs(second["kl"]) > 1e-3


def test_nothing_is_compiled_after_the_first_rollout(made):
    before, after = made[3]
    assert before == after and before["rollout_scores"] >= 1


def test_rows_hold_prompt_and_answer(start):
    task = prompts.Task("ab", None, (1, 2, 3))
    said = Completion([7, 8, 2], [-1.0, -2.0, -0.5], "", "stop")
    rows = answering.to_rows([task.ids], [said], 8)
    assert rows["tokens"].tolist() == [[1, 2, 3, 7, 8, 2, 0, 0]]
    assert rows["targets"].tolist() == [[2, 3, 7, 8, 2, 0, 0, 0]]
    assert rows["weights"].tolist() == [[0, 0, 1, 1, 1, 0, 0, 0]]
    assert rows["segments"].tolist() == [[1] * 6 + [0] * 2]
    assert rows["sampler_logps"].tolist() == [[0, 0, -1.0, -2.0, -0.5, 0, 0, 0]]


def test_every_epoch_trains_on_every_answer_once(made):
    _, steps, _, _, _ = made
    for first in (0, 2):
        epoch = np.concatenate(
            [steps[first][k] for k in ("tokens",)] + [steps[first + 1]["tokens"]]
        )
        again = np.concatenate([steps[2 - first]["tokens"], steps[3 - first]["tokens"]])
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, again))
    assert steps[0]["tokens"].shape == (BATCH, LENGTH)
    assert not np.array_equal(steps[0]["tokens"], steps[2]["tokens"])
    assert not np.array_equal(steps[0]["tokens"], steps[4]["tokens"])


def test_old_logprobs_are_the_models_own(start, made):
    """Against logits of the plain model, row by row."""
    batch = made[1][1]
    logits = np.asarray(start.logits(batch["tokens"]), np.float64)
    for b in range(BATCH):
        n = int(batch["segments"][b].sum())
        logs = logits[b] - np.log(np.exp(logits[b]).sum(-1, keepdims=True))
        chosen = batch["weights"][b] > 0
        assert chosen[: n - 1].any() and not chosen[n - 1 :].any()
        want = logs[np.arange(LENGTH), batch["targets"][b]][chosen]
        np.testing.assert_allclose(batch["old_logps"][b][chosen], want, atol=1e-4)
    assert (batch["value_weights"] == batch["weights"]).all()
    assert batch["old_values"][batch["weights"] > 0].std() > 0


def test_a_restored_source_goes_on_with_the_same_rows(start, made):
    _, steps, _, _, moved = made
    source = make(start)
    for step in range(6):
        source.batch(step, start.params if step < 4 else moved)
    state = json.loads(json.dumps(source.state()))
    other = make(start)
    other.restore(state)
    for step in (6, 7):  # of the same rollout: the parameters do not matter any more
        batch = other.batch(step, None)
        assert batch.keys() == steps[step].keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], steps[step][name])
    assert "arrays" not in other.state()  # the next step begins a new one
    recorded = []
    third = make(start, recorded.append)
    third.restore(other.state())
    third.batch(8, start.params)
    other.batch(8, start.params)
    assert third.state() == other.state() and third.coef == other.coef != 0.1
    assert json.loads(recorded[0])["rollout"] == 2
    with pytest.raises(DataError, match="prompts changed"):
        third.restore({**state, "tasks": "others"})


def test_measures(start, made):
    source, _, lines, _, _ = made
    metrics = dict(source._measured[0])
    assert set(metrics) >= {
        "reward", "reward_exact", "reward_length", "gold", "kl", "entropy", "length", "truncated",
        "equal_groups", "kl_coef", "seconds",
    }  # fmt: skip
    text = lines[0]["answers"][0]
    assert text["prompt"][0]["content"].startswith("max ") and isinstance(text["text"], str)
    # The totals: 1 for a right answer, minus 0.5 for a long one, minus 1 for one without an end
    assert metrics["reward"] == pytest.approx(
        metrics["reward_exact"] + 0.5 * metrics["reward_length"] - metrics["truncated"]
    )
    held = rollout.HeldOut(source, prompts.puzzles(count=40, size=3, held_out=8)["validation"])
    found = held.measure(start.params, 4)
    assert found == held.measure(start.params, 4)
    assert 0 <= found["reward_exact"] <= 1 and found["length"] <= ANSWER


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"rewards": {"exat": {}}}, "exact"),
        ({"rewards": {"exact": {"weight": 0.0}}}, "rollout.rewards"),
        ({"rewards": {"mine": {"function": "no.such:thing"}}}, "mine"),
        ({"temperature": 0.0}, "temperature"),
        ({"group": 1}, "others"),
        ({"kl": {"place": "lost"}}, "rollout.kl.place"),
        ({"kl": {"plase": "loss"}}, "plase"),
        ({"advantages": {"name": "gea"}}, "gae"),
        ({"importance": {"name": "token_mask"}, "temperature": 0.7}, "temperature=1"),
        ({"gold": "silver"}, "rollout.gold"),
        ({"monitors": {"lenght": 2.0}}, "lenght"),
    ],
)
def test_wrong_sections_are_named(section, named):
    with pytest.raises(ConfigError) as error:
        rollout.check({**SECTION, "advantages": {"name": "group"}, **section})
    assert named in str(error.value)


def test_sizes_that_do_not_go_together(start):
    with pytest.raises(ConfigError, match="whole groups of 5"):
        make(start, group=5)
    with pytest.raises(DataError, match="prompts has"):
        make(start, max_tokens=30)


def test_overlong_answers_are_left_out_of_the_loss(start):
    source = make(start, mask_truncated=True, advantages={"name": "group"})
    batch = source.batch(0, start.params)
    stops = np.isin(batch["tokens"], start.tokenizer.stop_ids)
    ended = np.asarray([stops[b, 8:].any() for b in range(BATCH)])
    assert (batch["weights"].any(axis=1) <= ended).all()
    assert batch["advantages"].shape == (BATCH,) and "returns" not in batch


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_pp", "ppo"])
def test_the_first_step_has_the_plain_policy_gradient(start, made, name):
    """At ratio 1 every objective's gradient is that of -Σ A log p, averaged in its own way."""
    batch = {k: jnp.asarray(v) for k, v in made[1][0].items()}
    if name == "rloo":
        batch["advantages"] = batch["advantages"][:, 8]
    options = {"value_weight": 0.0} if name == "ppo" else {}
    options |= {"loss": "bnpo"} if name == "grpo" else {}
    objective = configs.resolve_builder(main.OBJECTIVES[name])(start.model, **options)

    def loss(params):
        total, weight = objective.loss(params, (), batch, None)["loss"]
        return total / weight

    def plain(params):
        logps = policy.token_scores(start.model, params, batch)["logps"] * batch["weights"]
        A = batch["advantages"]
        if name == "rloo":
            return -(logps.sum(axis=1) * A).mean()
        return -(logps * A).sum() / batch["weights"].sum()

    ours, want = jax.jit(jax.grad(loss))(start.params), jax.jit(jax.grad(plain))(start.params)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)


def test_pieces_of_logits_give_the_same_scores(start, made):
    batch = {k: jnp.asarray(v) for k, v in made[1][0].items()}
    whole = policy.token_scores(start.model, start.params, batch)
    parts = policy.token_scores(start.model, start.params, batch, chunk=8)
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], atol=1e-6)

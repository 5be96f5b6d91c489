# SPDX-License-Identifier: Apache-2.0
"""Spikes against a plain NumPy loop; what must not get into the window; going back in the loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import metrics
from llm.errors import ConfigError, NonFiniteError
from llm.train import bad_batches, detour, spikes
from llm.train.loop import Loop, Plan
from llm.train.objective import Objective, nothing
from llm.train.optim import Optimizer
from llm.train.step import Frozen, State, init_state, make_step

WINDOW, FACTOR = 8, 6.0
look = jax.jit(lambda h, loss, norm, fine: spikes.look(h, loss, norm, fine, FACTOR))


def judge(losses, norms, fine):
    """Return the scores that `spikes.look` gives to a sequence of steps, and the last history."""
    history, scores = spikes.empty(WINDOW), []
    for loss, norm, ok in zip(losses, norms, fine, strict=True):
        score, history = look(history, jnp.float32(loss), jnp.float32(norm), jnp.asarray(bool(ok)))
        scores.append(float(score))
    return scores, history


def by_hand(losses, norms, fine):
    """The same rule in float64 on plain lists."""
    kept, scores, row = [], [], 0
    for loss, norm, ok in zip(losses, norms, fine, strict=True):
        new, score = np.array([loss, np.log(max(norm, 1e-12))], np.float64), 0.0
        if not (ok and np.isfinite(new).all()):
            scores.append(0.0)
            continue
        if len(kept) >= WINDOW:
            window = np.array(kept[-WINDOW:])
            middle = np.median(window, axis=0)
            spread = 1.4826 * np.median(abs(window - middle), axis=0)
            floor = np.array([0.02 * abs(middle[0]) + 1e-6, 0.1])
            score = max((new - middle) / np.maximum(spread, floor))
            score = score if score > FACTOR else 0.0
        scores.append(score)
        if score:
            row += 1
            if row >= WINDOW // 2:
                kept, row = [], 0
        else:
            kept.append(new)
            row = 0
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    losses = (3 * np.exp(-np.arange(120) / 40) + 1 + 0.1 * rng.normal(size=120)).astype(np.float32)
    norms = np.exp(0.3 * rng.normal(size=120)).astype(np.float32)
    losses[rng.choice(120, 6)] *= 20
    norms[rng.choice(120, 4)] *= 100
    losses[rng.choice(120, 5)] = np.nan
    norms[rng.choice(120, 3)] = np.inf
    losses[100:] += 30  # and stays there
    fine = rng.random(120) > 0.05
    found, expected = judge(losses, norms, fine)[0], by_hand(losses, norms, fine)
    assert sum(score > 0 for score in expected) > 8
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_what_spikes_or_is_not_finite_stays_out_of_the_window():
    losses = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.0, np.nan, 20.0, 20.0, np.inf, 20.0, 1.0]
    scores, history = judge(losses, np.ones(14), np.ones(14))
    assert [score > 0 for score in scores] == [value == 20.0 for value in losses]
    assert float(history.values[0].max()) < 1.2 and int(history.seen) == 9


def test_nothing_is_judged_before_the_window_is_full():
    assert not any(judge([1.0] * 6 + [100.0], np.ones(7), np.ones(7))[0])


def test_a_new_level_is_accepted_in_the_end():
    scores, history = judge([1.0] * 10 + [9.0] * 30, np.ones(40), np.ones(40))
    assert sum(score > 0 for score in scores) == WINDOW // 2
    assert float(history.values[0].min()) == 9.0


def test_history_survives_json_bit_by_bit():
    _, history = judge(np.random.default_rng(0).random(11), np.ones(11), np.ones(11))
    back = spikes.from_json(spikes.to_json(history), spikes.empty(WINDOW))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(history), back)
    other = spikes.from_json(spikes.to_json(history), spikes.empty(16))
    assert other.values.shape == (2, 16) and int(other.seen) == 0
    assert spikes.to_json(()) == {} and spikes.from_json({}, ()) == ()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"action": "rollback"}, "'roll_back'"),
        ({"windw": 3}, "window"),
        ({"window": 2}, "window of 4"),
        ({"window": 0, "action": "roll_back"}, "needs a window"),
    ],
)
def test_wrong_sections_are_refused(section, says):
    with pytest.raises(ConfigError, match=says):
        spikes.make(section)


def quadratic(action, ema=0.5):
    """Return a jitted step on |w - target|², and its first state."""
    spike = spikes.Spikes(WINDOW, FACTOR, action)

    def loss(params, frozen, batch, keys):
        error = ((params["w"][None] - batch["target"]) ** 2).sum(axis=1)
        return {"loss": (error.sum(), batch["weight"].sum())}

    identity = jax.tree_util.Partial(lambda g, s, p: (jax.tree.map(jnp.negative, g), s))
    transform = type("T", (), {"init": lambda p: {"n": p["w"] * 0}, "update": identity})
    choice = Optimizer(transform, lambda step: jnp.float32(0.01), 0.0)
    step = make_step(Objective(nothing, loss), choice, ema_decay=ema, spike=spike, norms=True)
    state = init_state({"w": jnp.zeros(3)}, choice, ema=True)
    return jax.jit(step), state._replace(history=spikes.empty(WINDOW))


def steps(action, targets, weights):
    step, state = quadratic(action)
    states, found = [], []
    for target, weight in zip(targets, weights, strict=True):
        batch = {"target": jnp.full((2, 3), target), "weight": jnp.array([1.0, weight])}
        state, metrics_ = step(state, Frozen({}, ()), batch, jax.random.key(0))
        states.append(jax.device_get(state))
        found.append({k: float(v) for k, v in metrics_.items()})
    return states, found


def unchanged(one, other):
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(one, name), getattr(other, name))


def test_a_spike_is_skipped_where_asked_and_only_reported_elsewhere():
    targets = [1.0] * 10 + [50.0] + [1.0] * 2
    states, found = steps("skip", targets, [1.0] * 13)
    assert [f["applied"] for f in found] == [1.0] * 10 + [0.0] + [1.0] * 2
    unchanged(states[9], states[10])
    assert int(states[10].step) == 11 and list(states[10].skipped) == [0, 0]
    assert found[0]["grad_norm/w"] == pytest.approx(found[0]["grad_norm"])
    states, found = steps("log", targets, [1.0] * 13)
    assert found[10]["spike"] > FACTOR and found[10]["applied"] == 1.0
    assert not np.array_equal(states[9].params["w"], states[10].params["w"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_weight_changes_neither_parameters_nor_averages(bad):
    states, found = steps("log", [1.0] * 4, [1.0, 1.0, bad, 1.0])
    unchanged(states[1], states[2])
    assert list(states[2].skipped) == [1, 1] and list(states[3].skipped) == [1, 0]
    assert [f["applied"] for f in found] == [1.0, 1.0, 0.0, 1.0]


class Numbers:
    """A source whose batch is its step, and a loop over it that spikes at some of them."""

    def __init__(self, folder, spiking, plan, most=5):
        self.source = detour.Detour(type("S", (), {"batch": lambda s, n, p=None: n})())
        self.source.source.state = dict
        self.saved, self.read, self.told = {0: 0}, [], []
        self.loop = Loop(
            plan,
            lambda state, frozen, batch, key: self.step(state, batch, spiking),
            self.batches,
            writer=metrics.Writer(str(folder)),
            save=lambda state, values: self.saved.update({int(state.step): 0}),
            save_every=5,
            noticed=self.told.append,
            roll_back=self.roll_back,
            say=lambda line: None,
        )
        self.most = most

    def step(self, state, batch, spiking):
        self.read.append(batch)
        made = {"loss": 1.0, "grad_norm": 1.0, "lr": 0.1, "weight": 1.0, "tokens": 1.0}
        score = 9.0 if batch in spiking else 0.0
        made |= {"skipped": 0.0, "applied": 1.0, "spike": score}
        return state._replace(step=state.step + 1), jax.tree.map(jnp.float32, made)

    def batches(self, start, params):
        for step in itertools.count(start):
            yield step, self.source.batch(step)

    def roll_back(self, bad):
        if len(self.source.jumps) >= self.most:
            raise NonFiniteError("too often")
        step = max(s for s in self.saved if s < bad.step)
        self.source.jump(step, max(4, bad.step - step))
        return state_at(step)


def state_at(step):
    zero = jnp.zeros((), jnp.int32)
    return State(zero + step, {"w": jnp.zeros(())}, (), (), jnp.zeros(2, jnp.int32))


def test_the_loop_goes_back_and_leaves_data_out(tmp_path):
    run = Numbers(tmp_path, {12, 13}, Plan(20, 0, 4, 3))
    state = run.loop.run(state_at(0), Frozen({}, ()), jax.random.key(0))
    assert int(state.step) == 20
    # The spike at step 13 (data 12) is seen at 15, before that state is saved.
    assert run.read == [*range(15), *range(14, 24)] and run.source.jumps == [(10, 4)]
    assert [bad.step for bad in run.told] == [13]
    lines = metrics.read_lines(tmp_path / "metrics.jsonl")
    steps_ = [line["step"] for line in lines]
    assert steps_ == sorted(steps_), "what was measured after the step gone back to is removed"
    assert [x["train/rolled_back_from"] for x in lines if "train/rolled_back_from" in x] == [13]
    assert lines[-1]["perf/lost_steps"] == 5


def test_the_loop_gives_up_after_too_many(tmp_path):
    run = Numbers(tmp_path, set(range(12, 99)), Plan(20, 0, 4, 3), most=2)
    with pytest.raises(NonFiniteError, match="too often"):
        run.loop.run(state_at(0), Frozen({}, ()), jax.random.key(0))
    assert max(run.saved) == 10 and len(run.source.jumps) == 2


def test_detours_add_up_and_are_restored():
    class Source:
        def batch(self, step, params=None):
            return step

        def state(self):
            return {"kl": 0.5}

        def restore(self, state):
            self.restored = state

    one = detour.Detour(Source())
    one.jump(10, 5)
    one.jump(12, 100)
    assert [one.batch(step) for step in (9, 10, 11, 12)] == [9, 15, 16, 117]
    assert one.state() == {"kl": 0.5, "jumps": [[10, 5], [12, 100]]}
    other = detour.Detour(Source())
    other.restore(one.state())
    assert other.jumps == one.jumps and other.source.restored == {"kl": 0.5}
    assert not hasattr(other, "fingerprint")


class Rows:
    """Three rows of bytes per step."""

    fingerprint = "rows"

    def batch(self, step, params=None):
        text = np.frombuffer(f"step {step:03d} hf_abcdefghijkl".encode(), np.uint8)
        return {"tokens": np.tile(text.astype(np.int32), (3, 1)), "weights": np.ones((3, 4))}

    def ids(self, step):
        return [("docs", 3 * step + n) for n in range(3)]


class Bytes:
    """The tokenizer of these rows."""

    def decode(self, ids):
        return bytes(ids).decode()


def test_bad_batches_are_kept_bounded_and_without_secrets(tmp_path):
    keeper = bad_batches.BadBatches(str(tmp_path), Rows(), Bytes())
    bad = bad_batches.Bad(8, "non_finite", float("nan"), 2.0, 0.0, False)
    keeper.record(bad)
    bad_batches.BadBatches(str(tmp_path), Rows(), Bytes()).record(bad)  # a resumed run
    lines = metrics.read_lines(tmp_path / "bad_batches.jsonl")
    assert len(lines) == 1 and lines[0]["loss"] == "nan" and lines[0]["data_step"] == 7
    assert lines[0]["ids"] == [["docs", 21], ["docs", 22], ["docs", 23]]
    assert lines[0]["text"][0].startswith("step 007") and "hf_abc" not in str(lines)
    for step in range(200):
        keeper.record(bad._replace(step=step + 1))
    assert len(metrics.read_lines(tmp_path / "bad_batches.jsonl")) == bad_batches.LIMIT


def test_a_full_disk_keeps_no_batch_and_stops_nothing(tmp_path, caplog):
    keeper = bad_batches.BadBatches(str(tmp_path), Rows(), None)
    (tmp_path / "bad_batches.jsonl").mkdir()
    keeper.record(bad_batches.Bad(1, "spike", 9.0, 2.0, 7.0, True))
    assert "cannot be kept" in caplog.text

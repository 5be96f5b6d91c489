# SPDX-License-Identifier: Apache-2.0
"""The loop's order: evaluate, save, stop; non-finite numbers end it without a bad checkpoint."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from llm.core import metrics
from llm.errors import NonFiniteError, Preempted
from llm.train.loop import Hook, Loop, Plan
from llm.train.step import Frozen, State


def state(step=0):
    zero = jnp.zeros((), jnp.int32)
    return State(zero + step, {"w": jnp.zeros(())}, (), (), jnp.zeros(2, jnp.int32))


def step(old, frozen, batch, key):
    """Count; a NaN in the batch is a bad step."""
    del frozen, key
    bad = jnp.isnan(batch).astype(jnp.int32)
    skipped = jnp.stack([old.skipped[0] + bad, (old.skipped[1] + 1) * bad])
    made = {"loss": batch, "lr": 0.1, "weight": 1.0, "tokens": 4.0, "skipped": skipped[0]}
    return old._replace(step=old.step + 1, skipped=skipped), made


class Run:
    """A loop over given losses which records what happens."""

    def __init__(self, tmp_path, losses, hooks=(), save_every=0, stop_at=0, **plan):
        self.saved = []
        settings = {"steps": len(losses), "stop_after": 0, "log_every": 2, "max_bad_steps": 2}
        self.loop = Loop(
            Plan(**{**settings, **plan}),
            step,
            lambda start, params: zip(
                itertools.count(start), map(jnp.float32, losses[start:]), strict=False
            ),
            writer=metrics.Writer(str(tmp_path)),
            hooks=hooks,
            save=lambda s, values: self.saved.append((int(s.step), dict(values))),
            save_every=save_every,
            stopping=lambda done: bool(stop_at) and done >= stop_at,
            say=lambda line: None,
        )
        self.file = tmp_path / "metrics.jsonl"

    def run(self, start=0):
        return self.loop.run(state(start), Frozen({}, ()), jax.random.key(0))


def test_saves_know_their_evaluation(tmp_path):
    hook = Hook("validation", lambda done, s: {"eval/nll": 1.0 / done}, 2)
    run = Run(tmp_path, [1.0] * 5, [hook], save_every=1)
    run.run()
    expected = [{}, {"eval/nll": 0.5}, {}, {"eval/nll": 0.25}, {"eval/nll": 0.2}]
    assert run.saved == list(zip(range(1, 6), expected, strict=True))


def test_a_failing_evaluation_loses_no_step(tmp_path):
    def fail(done, s):
        raise ValueError("out of memory")

    run = Run(tmp_path, [1.0] * 4, [Hook("bad", fail, 3)])
    with pytest.raises(ValueError, match="out of memory"):
        run.run()
    assert run.saved == [(3, {})]


def test_a_signal_saves_and_stops(tmp_path):
    run = Run(tmp_path, [1.0] * 9, stop_at=4)
    with pytest.raises(Preempted, match="after step 4"):
        run.run()
    assert run.saved == [(4, {})]


def test_stop_after_and_resume(tmp_path):
    run = Run(tmp_path, [1.0] * 9, stop_after=4)
    assert int(run.run().step) == 4 and run.saved == [(4, {})]
    assert int(run.run(start=4).step) == 4  # nothing left to do


def test_one_bad_step_is_survived_and_kept_out_of_the_mean(tmp_path):
    run = Run(tmp_path, [2.0, float("nan"), 4.0, 4.0])
    assert int(run.run().skipped[0]) == 1
    lines = [line for line in metrics.read_lines(run.file) if "train/lr" in line]
    assert [line.get("train/loss") for line in lines] == [2.0, None, 4.0]  # steps 1, 2, 3-4
    assert sum(line.get("train/non_finite", 0) for line in lines) == 1


def test_many_bad_steps_end_the_run_without_saving(tmp_path):
    run = Run(tmp_path, [1.0, 1.0, *[float("nan")] * 6], save_every=1)
    with pytest.raises(NonFiniteError, match="not finite for 2 steps"):
        run.run()
    assert [number for number, _ in run.saved] == [1, 2, 3]


def test_bad_steps_in_a_row_count_wherever_they_lie(tmp_path):
    bad, fine = [float("nan")], [1.0]
    run = Run(tmp_path, fine + bad * 2 + fine * 5, log_every=6)
    with pytest.raises(NonFiniteError, match="for 2 steps up to step 3"):
        run.run()
    Run(tmp_path / "b", (fine + bad) * 3 + fine, log_every=6).run()


def test_the_host_waits_for_numbers_only_where_it_logs_or_saves(tmp_path, monkeypatch):
    asked = []
    real = jax.device_get
    monkeypatch.setattr("llm.train.loop.jax.device_get", lambda x: asked.append(len(x)) or real(x))
    Run(tmp_path, [1.0] * 40, log_every=20, save_every=15).run()
    assert asked == [1, 14, 5, 10, 10], "steps 1, 15 (saved), 20, 30 (saved), 40"


def test_hooks_can_look_before_the_first_step(tmp_path):
    seen = []
    hook = Hook("look", lambda done, s: seen.append(done) or {}, 2)
    Run(tmp_path, [1.0] * 2, [hook], look_first=True).run()
    assert seen == [0, 2]

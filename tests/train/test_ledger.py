# SPDX-License-Identifier: Apache-2.0
"""Accounts of time: they add up, over restarts and roll-backs."""

import pytest

from llm.train.ledger import Ledger


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def spend(clock, spent, **seconds):
    for name, value in seconds.items():
        spent[name] = spent.get(name, 0.0) + value
        clock.now += value


def line(step, ledger):
    return {"step": step, "time": ledger.seconds(), **ledger.metrics()}


def adds_up(ledger):
    assert sum(ledger.accounts().values()) == pytest.approx(ledger.seconds())


def test_a_crash_and_a_roll_back_lose_what_came_after_the_checkpoint():
    clock, spent = Clock(), {}
    first = Ledger(spent, clock(), clock)
    clock.now += 2.0
    first.restart(0, {}, {})
    spend(clock, spent, compile=3.0, steps=10.0, data=1.0, checkpoint=0.5)
    at_save = line(10, first)
    assert at_save["perf/goodput"] == pytest.approx(10 / 16.5) and at_save["time/start"] == 2.0
    spend(clock, spent, steps=6.0, evaluation=2.0)
    clock.now += 0.25  # nobody's
    adds_up(first)
    last = line(16, first)
    assert last["time/other"] == pytest.approx(0.25)

    clock, spent = Clock(), {}
    second = Ledger(spent, clock(), clock)
    clock.now += 1.0
    second.restart(10, last, at_save)
    spend(clock, spent, compile=2.0, steps=4.0)
    found = second.accounts()
    assert found["lost"] == pytest.approx(8.25), "all that came after the save"
    assert found["steps"] == 14.0 and found["start"] == 3.0 and found["compile"] == 5.0
    assert second.lost_steps == 6 and second.restarts == 1
    assert second.seconds() == pytest.approx(16.5 + 8.25 + 7.0)
    adds_up(second)

    at_save = line(14, second)
    spend(clock, spent, steps=3.0, checkpoint=1.0)
    second.go_back(3, at_save)
    assert second.accounts()["lost"] == pytest.approx(8.25 + 4.0)
    spend(clock, spent, steps=5.0)
    found = second.accounts()
    assert found["steps"] == 19.0 and found["checkpoint"] == 0.5 and second.lost_steps == 9
    adds_up(second)
    assert "steps done twice 9" in second.summary() and "steps 4" in second.summary()

    third = Ledger({}, clock(), clock)
    third.restart(14, line(17, second), at_save)
    assert third.restarts == 2 and third.lost_steps == 12
    adds_up(third)


def test_a_clean_stop_loses_nothing():
    clock, spent = Clock(), {}
    first = Ledger(spent, clock(), clock)
    first.restart(0, {}, {})
    spend(clock, spent, compile=1 / 3, steps=1 / 7, data=1e-5)
    last = {**line(4, first), "time": round(first.seconds(), 3)}
    second = Ledger({}, clock(), clock)
    second.restart(4, last, last)
    assert second.accounts()["lost"] == 0 and second.restarts == 1 and second.lost_steps == 0


def test_a_run_killed_before_its_first_save_lost_everything():
    clock = Clock()
    ledger = Ledger({}, clock(), clock)
    ledger.restart(0, {"step": 7, "time": 20.0, "time/steps": 20.0}, {})
    assert ledger.accounts()["lost"] == 20.0 and ledger.lost_steps == 7

# SPDX-License-Identifier: Apache-2.0
"""A lost or frozen process ends the others with code 6, a short message and stacks."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import runs

HEARTBEAT = 6
LONG = (f"--config.train.heartbeat={HEARTBEAT}", "--config.train.steps=100000")


def strike(workdir, group, victim, number):
    """Send a signal to one process of a group in training; return code, text, seconds of others."""
    runs.wait_for_step(workdir, 10, group[0])
    group[victim].send_signal(number)
    began, found = time.monotonic(), []
    for index, process in enumerate(group):
        if index != victim:
            code, output = runs.finish(process, timeout=HEARTBEAT + 20)
            found.append((index, code, output, time.monotonic() - began))
    group[victim].kill()
    group[victim].wait()
    return found


def check(workdir, found, victim, limit):
    for index, code, output, seconds in found:
        assert code == 6, output
        error = output[output.index("error: ") :].splitlines()
        assert len(error) <= 5, output
        assert f"Process {victim} (" in error[0] and "step " in error[0]
        assert "resume" in error[-1]
        stacks = (workdir / "stacks" / f"process-{index}.txt").read_text()
        assert "Thread 0x" in stacks and "loop.py" in stacks
        assert seconds <= limit, "the exit took longer than the heartbeat allows"


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (0, signal.SIGKILL),
        (1, signal.SIGSTOP),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_lost_or_frozen_process_of_two(data, tmp_path, start, victim, number):
    group = start(tmp_path, data, *LONG, processes=2)
    found = strike(tmp_path, group, victim, number)
    check(tmp_path, found, victim, HEARTBEAT + 5)


@pytest.mark.slow
def test_the_lost_one_of_three_is_named(data, tmp_path, start):
    group = start(tmp_path, data, *LONG, "--config.train.batch_size=12", processes=3)
    check(tmp_path, strike(tmp_path, group, 2, signal.SIGKILL), 2, HEARTBEAT + 10)


FAULTY = "tests/faults/faulty.py"


def test_a_hanging_step_ends_a_run(data, tmp_path, start):
    (process,) = start(
        tmp_path, data, "--config.train.step_timeout=8", config=FAULTY, FAULT="hang:12"
    )
    code, output = runs.finish(process)
    assert code == 6 and "has not ended for 8 s" in output, output
    assert "in hang" in (tmp_path / "stacks" / "process-0.txt").read_text()


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(data, tmp_path, start):
    """The one with the error says so; the other is told that it is alone."""
    more = (f"--config.train.heartbeat={HEARTBEAT}",)
    group = start(tmp_path, data, *more, processes=2, config=FAULTY, FAULT="fail:12:1")
    (code, output), (other_code, other_output) = (runs.finish(group[i], 120) for i in (1, 0))
    assert code == 3 and "A shard is gone." in output, output
    assert other_code == 6 and "Process 1 (" in other_output, other_output


@pytest.mark.slow
def test_data_that_hang_for_one_process_end_both(data, tmp_path, start):
    more = ("--config.train.step_timeout=8", f"--config.train.heartbeat={HEARTBEAT}")
    group = start(tmp_path, data, *more, processes=2, config=FAULTY, FAULT="hang:12:1")
    for index, process in enumerate(group):
        code, output = runs.finish(process, 120)
        assert code == 6, output
        assert "Thread 0x" in (tmp_path / "stacks" / f"process-{index}.txt").read_text()


@pytest.mark.slow
def test_processes_that_never_meet(data, tmp_path, start):
    group = start(tmp_path, data, processes=2, JOIN_TIMEOUT="5")
    group[1].kill()
    code, output = runs.finish(group[0], 60)
    assert code == 6 and len(output.splitlines()) <= 5, output


@pytest.mark.slow
def test_supervised_processes_go_on_by_themselves(data, tmp_path, start):
    """One of two is killed; both are started again and end as if nothing had happened."""
    whole = start(tmp_path / "whole", data, processes=2)
    for process in whole:
        assert runs.finish(process)[0] == 0
    program = ["scripts/supervise.py", "--pause=2", "--", sys.executable, "scripts/pretrain.py"]
    more = (f"--config.train.heartbeat={HEARTBEAT}",)
    group = start(tmp_path / "run", data, *more, processes=2, program=program)
    runs.wait_for_step(tmp_path / "run", 15, group[0])
    os.kill(child_of(group[1].pid), signal.SIGKILL)
    for process in group:
        code, output = runs.finish(process)
        assert code == 0 and "restart 1 of 20" in output, output
    step, tree, losses = runs.result(tmp_path / "run")
    assert step == runs.STEPS
    runs.same_bits(tree, runs.result(tmp_path / "whole")[1])
    assert losses[runs.STEPS] == runs.result(tmp_path / "whole")[2][runs.STEPS]


def child_of(pid):
    """Return the one child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

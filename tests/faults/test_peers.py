# SPDX-License-Identifier: Apache-2.0
"""A lost or frozen process ends the others with code 6, a short message and stacks."""

import signal
import time

import pytest

from tests.faults import runs

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

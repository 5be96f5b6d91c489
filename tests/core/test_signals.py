# SPDX-License-Identifier: Apache-2.0
"""The first signal asks, the second ends at once, even while the main thread is in C code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from llm.core import signals

CHILD = """
import hashlib, sys, time
from llm.core import signals
with signals.watch() as stop:
    print("ready", flush=True)
    if sys.argv[1] == "busy":  # one long call into C, as a compilation is
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)
    step = 0
    while not stop.requested(step):
        step += 1
        time.sleep(0.01)
    print("stopped by", stop.signal.name, flush=True)
    if sys.argv[1] == "slow":
        time.sleep(60)
    sys.exit(75)
"""


@pytest.fixture
def start():
    children = []

    def launch(mode):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield launch
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_the_loop(start, number):
    child = start("loop")
    child.send_signal(number)
    out, error = child.communicate(timeout=20)
    assert child.returncode == 75 and out == f"stopped by {number.name}\n"
    assert error.count("\n") == 1 and "saving after this step" in error


@pytest.mark.parametrize("mode", ["slow", "busy"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_at_once(start, mode, second):
    child = start(mode)
    child.send_signal(signal.SIGTERM)
    assert "SIGTERM: saving" in child.stderr.readline()
    time.sleep(signals._SAME + 0.1)
    child.send_signal(second)
    child.communicate(timeout=20)
    assert child.returncode == 128 + second


def test_one_request_delivered_twice_counts_once(start):
    child = start("loop")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        child.send_signal(number)
    child.communicate(timeout=20)
    assert child.returncode == 75


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals.watch() as stop:
        assert not stop.requested(0)
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not stop.requested(0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.signal == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

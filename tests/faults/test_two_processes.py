# SPDX-License-Identifier: Apache-2.0
"""Two real processes share one checkpoint and agree on when to stop."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llm.core import checkpoint, checkpoint_files

PEER = Path(__file__).with_name("peer.py")


@pytest.fixture
def launch():
    children = []

    def start(directory, mode):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        for index in range(2):
            children.append(
                subprocess.Popen(
                    [sys.executable, PEER, address, str(index), directory, mode],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
        return children[-2:]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def outputs(pair):
    results = [child.communicate(timeout=120) for child in pair]
    for child, (_, errors) in zip(pair, results, strict=True):
        assert child.returncode == 0, errors
    return [lines_of(out) for out, _ in results]


def lines_of(output):
    """Return a process's own lines: Gloo reports its connections on the same stream."""
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]


@pytest.mark.slow
def test_two_processes_save_and_walk_back_together(tmp_path, launch):
    assert outputs(launch(tmp_path, "save")) == [["3 {'step': 3} True"]] * 2
    assert checkpoint.list_steps(tmp_path) == [2, 3]
    # One process can read what two have written.
    assert checkpoint.restore(tmp_path).tree["params"]["w"].tolist()[0] == [3, 4, 5, 6, 7, 8]
    # Damage one file: whichever process checks it, both walk back.
    victim = next((tmp_path / "3" / "params").rglob("_METADATA"))
    victim.write_bytes(victim.read_bytes()[:-1])
    assert outputs(launch(tmp_path, "restore")) == [["2 True", "[2, 12]"]] * 2
    assert checkpoint_files.survey(tmp_path).set_aside == ["3.corrupt"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_one_process_stops_both_at_one_step(tmp_path, launch, number):
    pair = launch(tmp_path, "loop")
    for child in pair:
        while (line := child.stdout.readline()) != "ready\n":
            assert line.startswith("[Gloo]"), line
    pair[1].send_signal(number)
    first, second = outputs(pair)
    assert first == second and first[0].startswith("stopped at")

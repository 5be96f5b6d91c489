# SPDX-License-Identifier: Apache-2.0
"""A main thread that hangs is ended with code 6 and its stacks; one that moves on is left alone."""

import subprocess
import sys
import time

import pytest

from llm.core import peers, watchdog
from llm.errors import PeerError

CHILD = """
import hashlib, sys, time
from llm.core import watchdog
def stuck(seconds):
    time.sleep(seconds)
with watchdog.watch(float(sys.argv[2]), sys.argv[1], index=3):
    for step in range(1, 4):
        watchdog.at("compile" if step == 1 else "step", step)
        stuck(float(sys.argv[3 if step == 1 else 4]))
print("done")
"""


def run(folder, timeout, first, others):
    arguments = [str(folder), str(timeout), str(first), str(others)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=60
    )
    return child.returncode, child.stdout, child.stderr.splitlines()


def test_a_hanging_step(tmp_path):
    code, _, error = run(tmp_path, 0.5, 0, 60)
    assert code == 6 and len(error) <= 5
    assert "step 2 has not ended for 0.5 s" in error[0] and "resume" in error[-1]
    text = (tmp_path / "stacks" / "process-3.txt").read_text()
    assert "in stuck" in text and "in _guard" in text and str(tmp_path) in "".join(error)


def test_compilation_has_more_time_and_nothing_lasts_for_ever(tmp_path):
    assert run(tmp_path, 0.5, 1, 0.1)[:2] == (0, "done\n")
    code, _, error = run(tmp_path, 0.5, 60, 0)
    assert code == 6 and "compile at step 1 has not ended for 2 s" in error[0]


def test_zero_does_not_watch(tmp_path):
    assert run(tmp_path, 0, 0.3, 0.3)[0] == 0
    assert not (tmp_path / "stacks").exists()


def test_the_watch_ends_with_its_block(tmp_path):
    with watchdog.watch(0.1, tmp_path):
        pass
    time.sleep(0.5)
    assert not (tmp_path / "stacks").exists()


def test_stacks_lie_on_this_host_where_the_workdir_is_no_place(tmp_path):
    (tmp_path / "file").touch()
    for workdir in ("gs://bucket/run", tmp_path / "file"):
        with watchdog.open_file(workdir, 1) as file:
            assert file.name.endswith("stacks/process-1.txt")


# The forms of JAX 0.10.2, seen with processes killed and stopped.
MESSAGES = [
    (
        "absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):"
        "\n1\nThe tasks have crashed. Check the task logs for an earlier error",
        {1},
    ),
    ("tasks are unhealthy (stopped sending heartbeats):\n2\n13\nThe tasks", {2, 13}),
    ("Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 1 heartbeat timeout.", {1}),
    ("DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination", set()),
]


@pytest.mark.parametrize(("said", "lost"), MESSAGES)
def test_who_is_lost(said, lost):
    assert peers.lost_processes(said) == lost


@pytest.mark.parametrize(
    ("process", "processes", "said", "names"),
    [
        (0, 3, MESSAGES[1][0], "Process 2 (host-b, pid 7), 13"),
        (2, 3, "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader", "0"),
        (1, 3, "Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1", "Another process"),
        (1, 2, "Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1", "Process 0"),
    ],
)
def test_what_is_said_of_the_lost(tmp_path, process, processes, said, names):
    with watchdog.open_file(tmp_path, 2) as other:
        other.write("process 2 on host-b, pid 7\n")
    with watchdog.open_file(tmp_path, process) as file:
        error = peers._loss(peers.Group(process, processes, 60, file, 0, tmp_path), said)
    assert isinstance(error, PeerError) and names in error.problem


def test_without_other_processes_nothing_is_blamed():
    peers.blame(ValueError("Gloo AllGather failed"))
    peers.leave(3)

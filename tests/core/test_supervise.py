# SPDX-License-Identifier: Apache-2.0
"""Real commands that end in every way: which are started again, how often; signals passed on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.core import supervise

ROOT = Path(__file__).resolve().parents[2]

# Ends the n-th start with the n-th of the given codes; negative ones are signals to itself.
CHILD = """
import os, sys, time
log, *codes = sys.argv[1:]
with open(log, "a") as file:
    file.write(f"{os.getpid()}\\n")
code = int(codes[min(len(open(log).read().split()), len(codes)) - 1])
if code < 0:
    os.kill(os.getpid(), -code)
    time.sleep(60)
sys.exit(code)
"""


def run(tmp_path, codes, **options):
    log = tmp_path / "starts"
    command = [sys.executable, "-S", "-c", CHILD, str(log), *map(str, codes)]
    code = supervise.supervise(command, supervise.Options(pause=0.01, **options))
    return code, len(log.read_text().split())


@pytest.mark.parametrize(
    ("codes", "ends", "starts"),
    [
        ([0], 0, 1),
        ([75, 6, 0], 0, 3),
        ([-signal.SIGKILL, -signal.SIGABRT, 0], 0, 3),
        ([2], 2, 1),
        ([75, 4], 4, 2),
        ([6], 6, 4),
        ([-signal.SIGKILL], 137, 4),
    ],
)
def test_what_is_started_again(tmp_path, codes, ends, starts):
    assert run(tmp_path, codes, restarts=3) == (ends, starts)


def test_a_stopped_command_is_killed_and_started_again(tmp_path, capfd):
    assert run(tmp_path, [-signal.SIGSTOP, 0], frozen=0.5) == (0, 2)
    assert "stands stopped" in capfd.readouterr().err


OBEYS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_signal_is_passed_on_and_nothing_started_again():
    command = [sys.executable, "scripts/supervise.py", "--", sys.executable, "-S", "-c", OBEYS]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 75 and not error


def test_a_signal_ends_the_pause(tmp_path):
    command = [sys.executable, "-S", "-c", CHILD, str(tmp_path / "starts"), "6"]
    script = [sys.executable, "scripts/supervise.py", "--pause=60", "--", *command]
    process = subprocess.Popen(script, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert "a process was lost, frozen or hung (code 6); restart 1 of 20 in 60 s" in line
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 6 and time.monotonic() - began < 20


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--restart=3", "--", "true"], ["--pause=x", "--", "true"]]
)
def test_wrong_commands_are_refused(arguments, capsys):
    assert supervise.main(arguments) == 2
    assert capsys.readouterr().err


def test_help_and_options(capsys):
    assert supervise.main(["--help", "--"]) == 0
    assert "--restarts=N" in capsys.readouterr().err
    assert supervise.main(["--restarts=1", "--pause=0.5", "--", "true"]) == 0

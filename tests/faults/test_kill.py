# SPDX-License-Identifier: Apache-2.0
"""SIGKILL of a process that saves all the time: a verified step always remains, with right bits."""

import importlib.util
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llm.core import checkpoint, checkpoint_files

SAVER = Path(__file__).with_name("saver.py")


def load_saver():
    spec = importlib.util.spec_from_file_location("saver", SAVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(directory, seed, *point):
    return subprocess.Popen(
        [sys.executable, SAVER, directory, str(seed), *point],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(directory, handed_over):
    """After a kill: a verified step, no older than the last save known to be complete."""
    newest = checkpoint.newest_verified(directory)
    assert newest is not None
    assert newest >= handed_over - 1, "a save returns only when the one before it is on the disk"
    assert not checkpoint_files.survey(directory).damaged
    return newest


def kill_after(directory, seed, saves, delay):
    """Run a saver, kill it `delay` seconds after it has handed over some saves."""
    child = launch(directory, seed)
    first = child.stdout.readline().split()
    handed_over = 0
    for _ in range(saves):
        handed_over = int(child.stdout.readline().split()[1])
    timer = threading.Timer(delay, child.kill)
    timer.start()
    rest, errors = child.communicate()
    timer.join()
    lines = rest.split()
    assert child.returncode == -9, errors
    return first, int(lines[-1]) if lines and lines[-1].isdigit() else handed_over


def campaign(directory, kills, seed):
    generator = random.Random(seed)
    expected = ["fresh"]
    for number in range(kills):
        saves, delay = generator.randint(2, 4), generator.uniform(0, 0.5)
        first, handed_over = kill_after(directory, number, saves, delay)
        assert first == expected
        newest = max([check(directory, handed_over), *complete_but_unnamed(directory)])
        expected = ["restored", str(newest)]
    checkpoint.Checkpointer(directory).close()
    restored = checkpoint.restore(directory)
    saver = load_saver()
    assert restored.step == newest and saver.same_bits(restored.tree, saver.state_at(newest))


def complete_but_unnamed(directory):
    """List the steps whose save lacked only its last rename; the next start completes it."""
    folders = [item for item in directory.iterdir() if item.name.startswith(".saving-")]
    whole = [folder for folder in folders if not checkpoint_files.problems(folder)]
    return [checkpoint_files.read_manifest(folder).step for folder in whole]


@pytest.mark.parametrize("point", list(load_saver().POINTS))
def test_killed_at_every_stage_of_a_save(tmp_path, point):
    child = launch(tmp_path, 0, point)
    out, errors = child.communicate(timeout=120)
    assert child.returncode == -9, errors
    saver = load_saver()
    handed_over = int(out.split()[-1])
    newest = check(tmp_path, handed_over)
    checkpoint.Checkpointer(tmp_path).close()
    left = sorted(item.name for item in tmp_path.iterdir())
    assert not [name for name in left if name.startswith(".")], "leftovers are removed at start"
    again = checkpoint.newest_verified(tmp_path)
    assert again >= newest
    assert saver.same_bits(checkpoint.restore(tmp_path).tree, saver.state_at(again))


def test_a_few_kills_at_random_moments(tmp_path):
    campaign(tmp_path, kills=2, seed=1)


@pytest.mark.slow
def test_two_hundred_kills_at_random_moments(tmp_path):
    campaign(tmp_path, kills=200, seed=2)

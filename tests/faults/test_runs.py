# SPDX-License-Identifier: Apache-2.0
"""Faults of whole runs that no other file has: interrupts in compilation, clocks, caches."""

import random
import shutil
import signal
import subprocess
import time

import jax
import pytest

from llm.core import checkpoint, launch, logs, metrics
from tests import runs
from tests.faults import soak


@pytest.fixture
def train(monkeypatch, capsys, data):
    """Run the entry point in this process; return its code and what it wrote to stderr."""
    monkeypatch.chdir(runs.ROOT)
    monkeypatch.setattr(launch, "quiet", lambda: None)
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: first)

    def run(workdir, *more):
        code = launch.main("pretrain", runs.command(workdir, data, *more), {})
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_interrupted_while_compiling(data, unstopped, tmp_path, start, again):
    """One Ctrl-C ends after the step in work, a second at once; the run resumes either way."""
    (process,) = start(tmp_path, data, JAX_ENABLE_COMPILATION_CACHE="false")
    while not (line := process.stdout.readline()).startswith("model "):
        assert line, "the run ended early"
    process.send_signal(signal.SIGINT)
    if again:
        time.sleep(0.7)  # closer ones count as one
        process.send_signal(signal.SIGINT)
    code, output = runs.finish(process)
    assert code in ((75, 130) if again else (75,)), output
    if code == 75:
        assert "the state is saved" in output
    (process,) = start(tmp_path, data)
    assert runs.finish(process)[0] == 0
    runs.same_bits(runs.result(tmp_path)[1], runs.result(unstopped)[1])


def copy_of(unstopped, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(unstopped, copy)
    steps = checkpoint.list_steps(str(copy / "checkpoints"))
    return copy, [copy / "checkpoints" / str(step) for step in steps]


def spoil(folder):
    file = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    soak.flip(file, random.Random(0))


def test_nothing_left_to_trust_is_no_reason_to_start_again(unstopped, tmp_path, train):
    copy, steps = copy_of(unstopped, tmp_path)
    for step in steps:
        spoil(step)
    code, error = train(copy)
    assert code == 5 and "not restarted from step 0" in error and len(error.splitlines()) <= 5
    assert train(copy)[0] == 5, "nor at the next try"


def test_strict_resumption_refuses_a_damaged_newest_step(unstopped, tmp_path, train):
    copy, steps = copy_of(unstopped, tmp_path)
    spoil(steps[-1])
    code, error = train(copy, "--config.checkpoint.strict=true")
    assert code == 5 and f"step {steps[-1].name}" in error and "strict" in error
    assert len(error.splitlines()) <= 5


def test_data_that_do_not_last_are_refused_before_training(tmp_path, train):
    more = ("--config.data.epochs=2", "--config.train.steps=100000")
    code, error = train(tmp_path, *more)
    assert code == 3 and "2 epochs" in error and "data.epochs=0" in error
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_jumping_clock_changes_nothing(data, unstopped, tmp_path, start):
    (process,) = start(tmp_path, data, config=soak.CONFIG, FAULT="clock:12")
    code, output = runs.finish(process)
    assert code == 0, output
    runs.same_bits(runs.result(tmp_path)[1], runs.result(unstopped)[1])
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == [str(runs.STEPS - 5), str(runs.STEPS)], "steps are not named by time"


def test_a_second_launch_on_one_workdir_is_refused(data, tmp_path, start, train):
    (first,) = start(tmp_path, data, "--config.train.steps=100000")
    runs.wait_for_step(tmp_path, 5, first)
    code, error = train(tmp_path)
    assert code == 5 and f"process {first.pid}" in error
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert runs.finish(first)[0] == 75
    assert time.monotonic() - began < 10, "SIGTERM ends a tiny run within ten seconds"


@pytest.mark.slow
def test_a_damaged_compile_cache_is_made_anew(data, unstopped, tmp_path, start):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    (process,) = start(tmp_path / "one", data, **cache)
    assert runs.finish(process)[0] == 0
    generator = random.Random(0)
    found = [p for p in (tmp_path / "cache").iterdir() if p.is_file() and p.stat().st_size]
    assert found
    for number, file in enumerate(found):
        (soak.flip, soak.truncate)[number % 2](file, generator)
    (process,) = start(tmp_path / "two", data, **cache)
    code, output = runs.finish(process)
    assert code == 0, output
    runs.same_bits(runs.result(tmp_path / "two")[1], runs.result(unstopped)[1])


def test_a_full_disk_for_metrics_and_logs(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        writer = metrics.Writer(str(disk))
        with logs.record(disk, 0):
            writer.write(1, 0.0, {"train/loss": 1.0})
            fill(disk / "ballast")
            for step in range(2, 200):
                writer.write(step, 0.0, {"train/loss": 1.0, "text": float(step)})
                logs.event("save", step=step, message="x" * 200)
            (disk / "ballast").unlink()
            writer.write(200, 0.0, {"train/loss": 2.0})
        assert caplog.text.count("metrics cannot be written") == 1
        assert metrics.read_lines(disk / "metrics.jsonl")[0]["step"] == 1
        assert metrics.read_lines(disk / "metrics.jsonl")[-1]["step"] == 200
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(file):
    """Write until the disk is full."""
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(b"\0" * 4096)
        except OSError:
            return

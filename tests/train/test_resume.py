# SPDX-License-Identifier: Apache-2.0
"""Stop and go on: killed, preempted, damaged or moved runs end where the unstopped one does."""

import random
import shutil
import signal
import time

import numpy as np
import pytest

from llm.core import checkpoint, launch
from tests import runs

STEPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_documents(tmp_path_factory.mktemp("data") / "docs.jsonl")


def command(*arguments):
    return runs.command(*arguments, steps=STEPS)


def start(*arguments, devices=1):
    (process,) = runs.start(*arguments, devices=devices, steps=STEPS)
    return process


@pytest.fixture(scope="module")
def unstopped(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    code, output = runs.finish(start(workdir, data))
    assert code == 0, output
    return workdir


def test_three_kills_change_no_bit(data, unstopped, tmp_path):
    rng = random.Random(1)
    for step in sorted(rng.sample(range(6, STEPS - 6), 3)):
        process = start(tmp_path, data)
        runs.wait_for_step(tmp_path, step, process)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    code, output = runs.finish(start(tmp_path, data))
    assert code == 0 and "resuming at step" in output, output
    step, tree, losses = runs.result(tmp_path)
    whole_step, whole_tree, whole_losses = runs.result(unstopped)
    assert step == whole_step == STEPS
    runs.same_bits(tree, whole_tree)
    for number in set(losses) & set(whole_losses) - {1}:
        if number % 5 == 0 and number - 5 in whole_losses:
            assert np.isfinite(losses[number])


def test_sigterm_loses_no_step(data, unstopped, tmp_path):
    process = start(tmp_path, data, "--config.checkpoint.every=0")
    runs.wait_for_step(tmp_path, 10, process)
    process.send_signal(signal.SIGTERM)
    code, output = runs.finish(process)
    assert code == 75 and "the state is saved" in output, output
    stopped = checkpoint.restore(str(tmp_path / "checkpoints")).step
    assert stopped >= 10 and f"after step {stopped}" in output
    code, output = runs.finish(start(tmp_path, data))
    assert code == 0 and f"resuming at step {stopped}" in output, output
    runs.same_bits(runs.result(tmp_path)[1], runs.result(unstopped)[1])


def test_resume_on_other_devices_sees_the_same_data(data, unstopped, tmp_path):
    """Half on one device, half on four (two of them data, two tensor): losses agree."""
    copy = tmp_path / "run"
    shutil.copytree(unstopped, copy)
    kept = {30}
    for folder in (copy / "checkpoints").iterdir():
        if folder.is_dir() and folder.name.isdigit() and int(folder.name) not in kept:
            shutil.rmtree(folder)
    if not (copy / "checkpoints" / "30").exists():
        shutil.rmtree(copy)
        code, output = runs.finish(start(copy, data, "--config.train.stop_after=30"))
        assert code == 0, output
    mesh = ("--config.mesh.data=2", "--config.mesh.tensor=2")
    code, output = runs.finish(start(copy, data, *mesh, devices=4))
    assert code == 0 and "resuming at step 30" in output, output
    losses, whole = runs.result(copy)[2], runs.result(unstopped)[2]
    for step in (40, 45, STEPS):  # the line at 35 averages from the resumption on
        assert losses[step] == pytest.approx(whole[step], rel=1e-5)


def test_a_flipped_byte_is_found_and_the_step_before_used(data, unstopped, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(unstopped, copy)
    newest = copy / "checkpoints" / str(STEPS)
    target = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(bytes(content))
    code, output = runs.finish(start(copy, data))
    assert code == 0 and f"resuming at step {STEPS - 5}" in output, output
    runs.same_bits(runs.result(copy)[1], runs.result(unstopped)[1])


def test_other_data_or_tokenizer_are_refused(data, unstopped, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    copy = tmp_path / "run"
    shutil.copytree(unstopped, copy)
    changed = tmp_path / "docs.jsonl"
    changed.write_text(data.read_text().replace("alpha", "omega"))
    monkeypatch.setattr(launch, "quiet", lambda: None)
    more = ("--config.mesh.data=-1", "--config.train.steps=70")
    assert launch.main("pretrain", command(copy, changed, *more), {}) == 3
    assert "training data changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--config.tokenizer.path=/nowhere",), 3, "/nowhere"),
        (("--config.model.vocab_size=100",), 2, "config.model.vocab_size is 100"),
        (("--config.data.length=512",), 2, "positions"),
        (("--config.data.path=/nowhere.jsonl",), 3, "/nowhere.jsonl"),
        (("--config.mesh.data=3",), 2, "does not fit 8 devices"),
        (("--config.mesh.data=8", "--config.train.batch_size=12"), 2, "nearest that does is 16"),
        (("--config.mesh.data=2", "--config.mesh.tensor=4"), 2, "does not divide over"),
        (("--config.init.from=/nowhere",), 0, ""),
        (("--config.platform=tpu",), 2, "runs on cpu"),
        (("--config.objective.name=clmm",), 2, "'clm'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_refusals(more, code, says, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    found = launch.main("pretrain", command(tmp_path, data, *more), {})
    printed = capsys.readouterr().err
    assert found == code if code else found in (2, 3, 5), printed
    assert says in printed and len(printed.splitlines()) <= 5


def test_an_empty_corpus_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    (tmp_path / "empty.jsonl").write_text("")
    assert launch.main("pretrain", command(tmp_path / "run", tmp_path / "empty.jsonl"), {}) == 3
    assert "empty.jsonl" in capsys.readouterr().err


def test_an_unwritable_workdir_is_refused(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    (tmp_path / "file").write_text("in the way")
    assert launch.main("pretrain", command(tmp_path / "file" / "run", data), {}) == 5
    assert len(capsys.readouterr().err.splitlines()) <= 5

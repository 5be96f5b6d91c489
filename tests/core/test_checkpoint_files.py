# SPDX-License-Identifier: Apache-2.0
"""The on-disk rules hold without JAX: manifests, checksums, deletion, cleaning."""

import hashlib
import os
import shutil

import pytest

from llm.core import checkpoint_files as disk
from llm.core.checkpoint_files import Leaf, Manifest


def write_step(base, step, content=b"weights", metrics=None):
    written = base / f".saving-{step}-1"
    (written / "params").mkdir(parents=True)
    (written / "params" / "data").write_bytes(content)
    (written / "_ROOT").write_text("root")
    leaves = {"params": [Leaf(("w",), (2,), "float32")], "count": [Leaf((), (), "int32")]}
    return disk.seal(written, step, leaves, {"a": 1}, metrics or {})


def test_a_manifest_reads_back_and_any_changed_byte_is_seen():
    manifest = Manifest(
        7, {"params": [Leaf(("a", "b"), (2, 3), "float32")]}, {"x": (3, "00ff")}, {"loss": 0.5}
    )
    text = disk.render_manifest(manifest)
    assert disk.parse_manifest(text) == manifest
    raw = text.encode()
    for index in range(len(raw)):
        for value in (raw[index] ^ 1, ord(" "), ord("\n"), ord("0")):
            changed = raw[:index] + bytes([value]) + raw[index + 1 :]
            if changed != raw:
                assert disk.parse_manifest(changed.decode("utf-8", "replace")) is None
    assert disk.parse_manifest(text + " ") is None
    assert disk.parse_manifest("[]") is None


def test_checksums_agree_with_a_plain_computation(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "_CHUNK", 1000)
    sizes = {"empty": 0, "small": 10, "exact": 2000, "large": 4321}
    for name, size in sizes.items():
        data = os.urandom(size)
        (tmp_path / name).write_bytes(data)
        parts = [data[i : i + 1000] for i in range(0, max(size, 1), 1000)]
        joined = b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in parts)
        expected = hashlib.blake2b(joined, digest_size=16).hexdigest()
        assert disk.checksums(tmp_path, [name]) == {name: (size, expected)}
    assert disk.checksums(tmp_path, ["absent"]) == {"absent": None}


def test_problems_names_the_file_and_splits_by_entry_and_process(tmp_path):
    step = write_step(tmp_path, 3)
    assert disk.problems(step) == []
    (step / "params" / "data").write_bytes(b"weightz")
    assert disk.problems(step) == ["params/data has other content than was written"]
    (step / "params" / "data").write_bytes(b"weight")
    assert disk.problems(step) == ["params/data has 6 bytes instead of 7"]
    (step / "params" / "data").unlink()
    assert disk.problems(step) == ["params/data is missing or unreadable"]
    assert disk.problems(step, entries=("count",)) == []
    shares = [disk.problems(step, share=(index, 2)) for index in range(2)]
    assert sorted(map(len, shares)) == [0, 1]
    (step / "manifest.json").unlink()
    assert disk.problems(step) == ["manifest.json is missing"]


def test_files_added_by_others_do_no_harm(tmp_path):
    step = write_step(tmp_path, 3)
    (step / "params" / "README").write_text("hello")
    assert disk.problems(step) == []


def test_a_step_renamed_to_another_number_is_no_step(tmp_path):
    write_step(tmp_path, 3).rename(tmp_path / "4")
    assert disk.survey(tmp_path).steps == []
    assert disk.survey(tmp_path).damaged == [4]


def test_survey_sorts_what_lies_around(tmp_path):
    for step in (10, 9):
        write_step(tmp_path, step)
    (tmp_path / "11").mkdir()
    (tmp_path / "12" / "params").mkdir(parents=True)
    (tmp_path / "007").mkdir()
    (tmp_path / "13").write_text("a file")
    (tmp_path / "8.corrupt").mkdir()
    (tmp_path / "8.corrupt-2").mkdir()
    (tmp_path / ".saving-14-1").mkdir()
    assert disk.survey(tmp_path) == disk.Listing(
        [9, 10], [12], ["8.corrupt", "8.corrupt-2"], ["007", "11", "13"]
    )


def test_setting_aside_twice_keeps_both(tmp_path):
    names = [disk.set_aside(write_step(tmp_path, 3), "corrupt") for _ in range(2)]
    assert names == ["3.corrupt", "3.corrupt-2"]


def test_prune_sets_later_steps_aside_and_keeps_the_newest(tmp_path):
    for step in (1, 2, 3, 9):
        write_step(tmp_path, step)
    disk.prune(tmp_path, 3, disk.Keep(last=1))
    assert disk.survey(tmp_path).steps == [3]
    assert disk.survey(tmp_path).set_aside == ["9.superseded"]


@pytest.mark.parametrize("complete", [True, False])
def test_clean_keeps_a_save_that_lacked_only_its_name(tmp_path, complete):
    step = write_step(tmp_path, 5)
    step.rename(tmp_path / ".saving-5-1")
    if not complete:
        (tmp_path / ".saving-5-1" / "params" / "data").write_bytes(b"half")
    disk.clean(tmp_path)
    assert disk.survey(tmp_path).steps == ([5] if complete else [])
    assert sorted(item.name for item in tmp_path.iterdir()) == (["5"] if complete else [])


def test_deleting_renames_before_it_removes(tmp_path, monkeypatch):
    step = write_step(tmp_path, 5)
    seen = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder: seen.append(folder.name))
    disk.delete(step)
    assert not step.exists() and seen[0].startswith(".deleting-5-")


def test_best_step_takes_the_newest_of_equals(tmp_path):
    for step, loss in {1: 2.0, 2: 1.0, 3: 1.0}.items():
        write_step(tmp_path, step, metrics={"loss": loss})
    write_step(tmp_path, 4)
    assert disk.best_step(tmp_path, [1, 2, 3, 4], "loss", "min") == 3
    assert disk.best_step(tmp_path, [1, 2, 3, 4], "loss", "max") == 1
    assert disk.best_step(tmp_path, [4], "loss", "max") is None


def test_root_takes_a_run_or_its_checkpoints(tmp_path):
    write_step(tmp_path / "checkpoints", 1)
    assert disk.root(tmp_path) == disk.root(tmp_path / "checkpoints") == tmp_path / "checkpoints"

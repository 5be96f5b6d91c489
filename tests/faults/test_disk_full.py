# SPDX-License-Identifier: Apache-2.0
"""A really full disk: alarms, no leftovers, older steps intact, then the storage exit code."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import pytest

from llm.core import checkpoint
from llm.errors import StorageError


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def state(megabytes, seed=0):
    size = int(megabytes * 1e6 / 4)
    return {"params": {"w": jax.random.normal(jax.random.key(seed), (size,))}}


def used(folder):
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())


def test_a_full_disk(small_disk, caplog):
    directory = small_disk / "checkpoints"
    small, large = state(3), state(12)
    writer = checkpoint.Checkpointer(directory, max_failures=3)
    writer.save(1, small, {"n": 1})
    writer.wait()
    before = used(small_disk)
    writer.save(2, large)
    writer.save(3, large)
    assert "step 2 was not saved: no space left on device (failure 1 of 3)" in caplog.text
    writer.save(4, large)
    with pytest.raises(StorageError, match="3 failures in a row") as caught:
        writer.wait()
    assert caught.value.exit_code == 5
    assert len(str(caught.value).splitlines()) <= 5
    assert used(small_disk) == before, "failed saves leave nothing"
    assert [item.name for item in directory.iterdir()] == ["1"]
    assert checkpoint.restore(directory).extra == {"n": 1}


def test_saving_goes_on_when_space_is_freed(small_disk, caplog):
    directory = small_disk / "checkpoints"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 5_000_000)
    with checkpoint.Checkpointer(directory, keep_last=2) as writer:
        writer.save(1, state(1))
        writer.save(2, state(3))
        writer.save(3, state(1.5, seed=3))
        ballast.unlink()
        writer.save(4, state(2, seed=4))
    assert "step 2 was not saved" in caplog.text and "step 3" not in caplog.text
    assert checkpoint.list_steps(directory) == [3, 4]
    assert checkpoint.newest_verified(directory) == 4
    assert jnp.array_equal(
        checkpoint.restore(directory).tree["params"]["w"], state(2, seed=4)["params"]["w"]
    )

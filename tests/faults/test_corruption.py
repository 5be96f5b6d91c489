# SPDX-License-Identifier: Apache-2.0
"""Real damage to every kind of file of a real checkpoint: all of it is found, none restored."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import checkpoint
from llm.core import checkpoint_files as disk
from llm.errors import StorageError


def state_at(step):
    generator = np.random.default_rng(step)
    params = {f"w{i}": jnp.asarray(generator.normal(size=(100, 50)), jnp.float32) for i in range(4)}
    return {"params": params, "opt_state": {"mu": params["w0"] * 2}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("healthy") / "checkpoints"
    with checkpoint.Checkpointer(directory) as writer:
        for step in (10, 20):
            writer.save(step, state_at(step), {"step": step})
    return directory


def flip(file, generator):
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def truncate(file, generator):
    file.write_bytes(file.read_bytes()[: generator.randrange(file.stat().st_size)])


def empty(file, generator):
    file.write_bytes(b"")


def delete(file, generator):
    file.unlink()


def scramble(file, generator):
    data = file.read_bytes()
    while (other := generator.randbytes(len(data))) == data:
        continue
    file.write_bytes(other)


def extend(file, generator):
    file.write_bytes(file.read_bytes() + generator.randbytes(1))


def replace_with_directory(file, generator):
    file.unlink()
    file.mkdir()


DAMAGE = [flip, truncate, empty, delete, scramble, extend, replace_with_directory]


def files_of(directory, step):
    return sorted(item for item in (directory / str(step)).rglob("*") if item.is_file())


def restores_step(directory, step):
    restored = checkpoint.restore(directory)
    assert restored.step == step and restored.extra == {"step": step}
    for got, want in zip(
        jax.tree.leaves(restored.tree), jax.tree.leaves(state_at(step)), strict=True
    ):
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def test_every_file_matters(healthy, tmp_path):
    """Each kind of damage to each single file is found (and restoring it makes the step whole)."""
    generator = random.Random(0)
    directory = tmp_path / "checkpoints"
    shutil.copytree(healthy, directory)
    files = files_of(directory, 20)
    assert {"manifest.json", "extra.json", "_METADATA"} <= {file.name for file in files}
    for file in files:
        original = file.read_bytes()
        for harm in DAMAGE:
            harm(file, generator)
            assert disk.problems(directory / "20"), f"{harm.__name__} of {file.name} was not found"
            if file.is_dir():
                file.rmdir()
            file.write_bytes(original)
    assert not disk.problems(directory / "20")
    restores_step(directory, 20)


def campaign(healthy, tmp_path, count, seed):
    generator = random.Random(seed)
    for number in range(count):
        directory = tmp_path / str(number)
        shutil.copytree(healthy, directory)
        file = generator.choice(files_of(directory, 20))
        generator.choice(DAMAGE)(file, generator)
        if generator.random() < 0.8:
            restores_step(directory, 10)
        else:
            generator.choice(DAMAGE)(generator.choice(files_of(directory, 10)), generator)
            with pytest.raises(StorageError, match="not restarted from step 0"):
                checkpoint.restore(directory)
        shutil.rmtree(directory)


def test_thirty_random_damages(healthy, tmp_path):
    campaign(healthy, tmp_path, 30, seed=1)


@pytest.mark.slow
def test_two_hundred_random_damages(healthy, tmp_path):
    campaign(healthy, tmp_path, 200, seed=2)


def test_a_lost_entry_or_step_directory(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "20" / "opt_state")
    assert checkpoint.restore(tmp_path / "a", entries=("params",)).step == 20
    restores_step(tmp_path / "a", 10)
    shutil.rmtree(tmp_path / "a" / "20")
    restores_step(tmp_path / "a", 10)

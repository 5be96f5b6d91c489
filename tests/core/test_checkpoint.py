# SPDX-License-Identifier: Apache-2.0
"""Checkpoints round-trip bit for bit, onto any mesh, and refuse what does not fit."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm.core import checkpoint
from llm.core import checkpoint_files as disk
from llm.errors import ConfigError, NonFiniteError, StorageError


def make_tree(seed=0):
    generator = np.random.default_rng(seed)
    params = {
        "layers": {
            "query": jnp.asarray(generator.normal(size=(8, 16, 4)), jnp.float32),
            "scale": jnp.asarray(generator.normal(size=(8, 4)), jnp.bfloat16),
        },
        "embedding": jnp.asarray(generator.normal(size=(32, 8)), jnp.float32),
    }
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "step": jnp.int32(seed),
    }


def assert_same(a, b):
    left, right = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with checkpoint.Checkpointer(directory) as writer:
        writer.save(1, make_tree(1), {"source": {"index": 1}})
        writer.save(2, make_tree(2), {"source": {"index": 2}})
    return directory


def test_round_trip_keeps_structure_bits_and_extra(saved):
    tree = make_tree(2)
    restored = checkpoint.restore(saved, target=jax.eval_shape(lambda: tree))
    assert restored.step == 2 and restored.extra == {"source": {"index": 2}}
    assert jax.tree.structure(restored.tree) == jax.tree.structure(tree)
    assert_same(restored.tree, tree)


def test_an_older_step_by_number(saved):
    assert_same(checkpoint.restore(saved, step=1).tree["params"], make_tree(1)["params"])
    with pytest.raises(StorageError, match="no checkpoint of step 7"):
        checkpoint.restore(saved, step=7)


def test_parameters_without_the_optimizer(saved, monkeypatch):
    read = []
    hashes = disk.checksums
    monkeypatch.setattr(
        disk, "checksums", lambda folder, names: read.extend(names) or hashes(folder, names)
    )
    restored = checkpoint.restore(saved.parent, entries=("params",))
    assert list(restored.tree) == ["params"]
    assert_same(restored.tree["params"], make_tree(2)["params"])
    assert not [name for name in read if name.startswith("opt_state")]


def test_unusual_leaves(tmp_path):
    tree = {
        "a": {"empty": jnp.zeros((0, 3)), "key": jax.random.key(3, impl="rbg"), "number": 7},
        "nothing": (),
        "rate": 0.25,
        "small": jnp.arange(4).astype(jnp.float8_e4m3fn),
        "wide": np.arange(3, dtype=np.int64),
        "flag": np.array([True, False]),
    }
    with checkpoint.Checkpointer(tmp_path) as writer:
        writer.save(1, tree)
    target = {**tree, "a": {**tree["a"], "key": jax.eval_shape(lambda: tree["a"]["key"])}}
    back = checkpoint.restore(tmp_path, target=target).tree
    assert back["nothing"] == () and back["rate"] == 0.25 and back["a"]["number"] == 7
    assert back["a"]["empty"].shape == (0, 3) and back["wide"].dtype == np.int64
    assert jax.random.normal(back["a"]["key"]) == jax.random.normal(tree["a"]["key"])
    assert_same(back["small"], tree["small"])
    assert_same(back["flag"], tree["flag"])


@pytest.mark.parametrize("name", ["a/b", ""])
def test_names_that_cannot_be_told_apart_are_refused(tmp_path, name):
    with checkpoint.Checkpointer(tmp_path) as writer, pytest.raises(ValueError, match="tree key"):
        writer.save(1, {"params": {name: jnp.ones(2)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(extra=jnp.ones(3)), "params/extra is not in checkpoint step 2"),
        (lambda p: p.pop("embedding"), "params/embedding, which is not expected"),
        (lambda p: p.update(embedding=jnp.ones((32, 9))), r"float32\[32, 8\].*float32\[32, 9\]"),
        (
            lambda p: p.update(embedding=jnp.ones((32, 8), jnp.bfloat16)),
            r"params/embedding is float32\[32, 8\].*bfloat16\[32, 8\] is expected",
        ),
    ],
)
def test_a_target_that_does_not_fit_names_the_leaf(saved, change, message):
    params = make_tree(2)["params"]
    change(params)
    with pytest.raises(ConfigError, match=message):
        checkpoint.restore(saved, target={"params": params})


def test_a_missing_entry_is_named(saved):
    with pytest.raises(ConfigError, match="no entry 'ema'; it has params, opt_state, step"):
        checkpoint.restore(saved, target={"ema": {}})


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("fsdp",))


@pytest.mark.parametrize("source", [1, 2, 4, 8])
def test_every_mesh_loads_what_any_mesh_saved(tmp_path, source):
    tree = make_tree(5)
    split = NamedSharding(mesh_of(source), PartitionSpec("fsdp"))
    whole = NamedSharding(mesh_of(source), PartitionSpec())
    placed = {
        "params": jax.device_put(tree["params"], split),
        "opt_state": jax.device_put(tree["opt_state"], whole),
    }
    with checkpoint.Checkpointer(tmp_path) as writer:
        writer.save(1, placed)
    for count in (1, 2, 4, 8):
        split = NamedSharding(mesh_of(count), PartitionSpec(None, "fsdp"))
        whole = NamedSharding(mesh_of(count), PartitionSpec())
        where = {
            "params": {"layers": whole, "embedding": split},
            "opt_state": whole,
        }
        back = checkpoint.restore(tmp_path, target=placed, shardings=where).tree
        assert back["params"]["embedding"].sharding == split
        assert back["opt_state"][0].mu["embedding"].sharding == whole
        assert_same(back, {name: tree[name] for name in placed})
    same = checkpoint.restore(tmp_path, target=placed).tree  # the target's own shardings
    assert same["params"]["embedding"].sharding == placed["params"]["embedding"].sharding
    one = checkpoint.restore(tmp_path, entries=("params",), shardings=whole).tree
    assert one["params"]["layers"]["scale"].sharding == whole


@pytest.mark.parametrize("spec", [None, PartitionSpec(), PartitionSpec("fsdp")])
def test_donating_right_after_save_does_not_change_what_is_written(tmp_path, spec):
    """A train step donates its state; the background write must not see the new values."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = {"params": {f"w{i}": jnp.zeros((64, 4096)) for i in range(8)}}
    if spec is not None:
        state = jax.device_put(state, NamedSharding(mesh_of(8), spec))
    state = step(state)
    writer = checkpoint.Checkpointer(tmp_path, keep_last=10)
    for number in range(1, 6):
        writer.save(number, state)
        for _ in range(3):
            state = step(state)
    writer.close()
    for number in range(1, 6):
        params = checkpoint.restore(tmp_path, step=number).tree["params"]
        assert all(np.all(leaf == 1 + 3 * (number - 1)) for leaf in params.values())


def test_numpy_leaves_are_copied(tmp_path):
    counts = np.arange(100_000)
    with checkpoint.Checkpointer(tmp_path) as writer:
        writer.save(1, {"counts": counts})
        counts[:] = -1
    np.testing.assert_array_equal(checkpoint.restore(tmp_path).tree["counts"], np.arange(100_000))


def run_steps(directory, steps, metrics=None, **options):
    with checkpoint.Checkpointer(directory, **options) as writer:
        for step in steps:
            values = {"eval/loss": metrics[step]} if metrics else None
            writer.save(step, {"params": jnp.full((4,), float(step))}, metrics=values)
    return checkpoint.list_steps(directory)


def test_the_last_the_periodic_and_the_best_stay(tmp_path):
    assert run_steps(tmp_path / "last", range(1, 6), keep_last=2) == [4, 5]
    assert run_steps(tmp_path / "every", range(1, 8), keep_last=1, keep_every=3) == [3, 6, 7]
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0}
    best = {"keep_last": 1, "metrics": losses}
    kept = run_steps(tmp_path / "min", losses, keep_best=("eval/loss", "min"), **best)
    assert kept == [2, 4]
    kept = run_steps(tmp_path / "max", losses, keep_best=("eval/loss", "max"), **best)
    assert kept == [4]


def test_saving_the_same_step_again_does_nothing(tmp_path):
    assert run_steps(tmp_path, [5, 5]) == [5]
    with checkpoint.Checkpointer(tmp_path) as writer:
        assert writer.restore().step == 5
        writer.save(5, {"params": jnp.zeros(4)})
    assert checkpoint.restore(tmp_path).tree["params"][0] == 5.0


def test_going_back_sets_later_steps_aside(tmp_path, caplog):
    run_steps(tmp_path, [10, 20, 30])
    with checkpoint.Checkpointer(tmp_path) as writer:
        writer.restore(step=10)
        writer.save(20, {"params": jnp.full((4,), -1.0)})
    assert checkpoint.list_steps(tmp_path) == [10, 20]
    assert checkpoint.restore(tmp_path).tree["params"][0] == -1.0
    assert disk.survey(tmp_path).set_aside == ["20.superseded", "30.superseded"]
    assert "went back to step 20" in caplog.text


def damage(directory, step):
    inside = (directory / str(step) / "params").rglob("*")
    file = max((item for item in inside if item.is_file()), key=lambda item: item.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_flipped_bit_falls_back_to_the_step_before(tmp_path, caplog):
    run_steps(tmp_path, [10, 20])
    damage(tmp_path, 20)
    assert checkpoint.newest_verified(tmp_path) == 10
    restored = checkpoint.restore(tmp_path)
    assert restored.step == 10 and restored.tree["params"][0] == 10.0
    assert "step 20 is damaged (params/" in caplog.text
    assert (tmp_path / "20").is_dir(), "reading alone changes nothing on the disk"
    with pytest.raises(StorageError, match=r"step 20 .* is damaged"):
        checkpoint.restore(tmp_path, strict=True)
    with pytest.raises(StorageError, match=r"step 20 .* is damaged"):
        checkpoint.restore(tmp_path, step=20)
    with checkpoint.Checkpointer(tmp_path) as writer:
        assert writer.restore().step == 10
        assert disk.survey(tmp_path).set_aside == ["20.corrupt"]
        writer.save(20, {"params": jnp.zeros(4)})
    assert checkpoint.newest_verified(tmp_path) == 20


def test_never_a_silent_restart(tmp_path):
    assert not checkpoint.has_checkpoints(tmp_path)
    with pytest.raises(StorageError, match="has no checkpoint"):
        checkpoint.restore(tmp_path)
    run_steps(tmp_path, [10])
    damage(tmp_path, 10)
    for _ in range(2):  # refusing must not set the evidence aside and restart the next time
        with pytest.raises(StorageError, match="not restarted from step 0"):
            checkpoint.restore(tmp_path, repair=True)
        assert checkpoint.has_checkpoints(tmp_path)
    disk.set_aside(tmp_path / "10", "corrupt")
    assert checkpoint.has_checkpoints(tmp_path)
    with pytest.raises(StorageError, match=r"set aside: 10\.corrupt"):
        checkpoint.restore(tmp_path)


def test_foreign_files_are_ignored_and_leftovers_removed(tmp_path, caplog):
    run_steps(tmp_path, [10])
    (tmp_path / "99").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".saving-30-1.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / ".deleting-5-123").mkdir()
    assert checkpoint.restore(tmp_path).step == 10
    assert "no checkpoint: 99, notes.txt" in caplog.text
    checkpoint.Checkpointer(tmp_path).close()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["10", "99", "notes.txt"]


def test_a_poisoned_state_is_never_saved(tmp_path):
    with checkpoint.Checkpointer(tmp_path) as writer:
        writer.save(1, {"params": {"w": jnp.ones(3), "n": jnp.int32(1)}, "best": jnp.inf})
        with pytest.raises(NonFiniteError, match="params/w is not finite at step 2"):
            writer.save(2, {"params": {"w": jnp.array([1.0, jnp.nan, 1.0]), "n": jnp.int32(1)}})
        for entry in ("ema", "opt_state"):
            with pytest.raises(NonFiniteError, match=f"{entry}/m is not finite at step 3"):
                writer.save(3, {"params": jnp.ones(1), entry: {"m": jnp.array([-jnp.inf])}})
    assert checkpoint.list_steps(tmp_path) == [1]


def test_failed_saves_alarm_then_end_the_run(tmp_path, monkeypatch, caplog):
    tree = {"params": jnp.ones(8)}
    writer = checkpoint.Checkpointer(tmp_path, max_failures=2)
    writer.save(1, tree)
    writer.wait()
    working = disk.seal

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "seal", broken)
    writer.save(2, tree)
    writer.save(3, tree)  # training goes on
    assert "step 2 was not saved: no space left on device (failure 1 of 2)" in caplog.text
    with pytest.raises(StorageError, match="2 failures in a row"):
        writer.save(4, tree)
    assert [item.name for item in tmp_path.iterdir()] == ["1"]
    monkeypatch.setattr(disk, "seal", working)
    writer.save(4, tree)
    writer.wait()
    monkeypatch.setattr(disk, "seal", broken)
    writer.save(5, tree)
    with pytest.raises(StorageError, match="step 5 was not saved"):
        writer.close()
    assert checkpoint.newest_verified(tmp_path) == 4


def test_an_unwritable_directory_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        checkpoint.Checkpointer(tmp_path / "file" / "checkpoints")


def test_synchronous_saving_and_a_broken_caller(tmp_path, caplog):
    writer = checkpoint.Checkpointer(tmp_path, asynchronous=False)
    writer.save(1, {"params": jnp.ones(2)})
    assert checkpoint.list_steps(tmp_path) == [1]
    writer.close()
    with (
        pytest.raises(ZeroDivisionError),
        checkpoint.Checkpointer(tmp_path) as writer,
    ):
        writer.save(2, {"params": jnp.ones(2)})
        raise ZeroDivisionError
    assert checkpoint.list_steps(tmp_path) == [1, 2]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_extra_must_be_json(tmp_path):
    with checkpoint.Checkpointer(tmp_path) as writer, pytest.raises(TypeError):
        writer.save(1, {"params": jnp.ones(2)}, {"when": object()})


def test_how_long_a_save_holds_the_loop(tmp_path, record_property):
    state = {"params": {f"w{i}": jnp.ones((100_000,)) for i in range(25)}}  # 10 MB
    with checkpoint.Checkpointer(tmp_path) as writer:
        for step in range(1, 4):
            writer.save(step, state)
            record_property(f"blocked_seconds_{step}", writer.blocked)
            writer.wait()
            assert writer.blocked > 0


def test_relative_paths_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with checkpoint.Checkpointer("run/checkpoints") as keeper:
        keeper.save(1, {"params": {"w": jnp.arange(3.0)}})
    restored = checkpoint.restore("run")
    assert restored.step == 1 and restored.tree["params"]["w"].tolist() == [0.0, 1.0, 2.0]

# SPDX-License-Identifier: Apache-2.0
"""The resolver refuses what it cannot honour, and constraints reach the compiled program."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding, shards
from llm.core.sharding_report import activation_report, sharding_report
from llm.errors import ConfigError


def mesh(**sizes):
    return sharding.make_mesh(sizes)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": -1}, {"data": 8}),
        ({"data": 2, "fsdp": -1}, {"data": 2, "fsdp": 4}),
        ({"fsdp": 2, "tensor": 4}, {"fsdp": 2, "tensor": 4}),
    ],
)
def test_mesh_shapes(sizes, shape):
    made = mesh(**sizes)
    assert {a: n for a, n in made.shape.items() if n > 1} == shape
    assert tuple(made.shape) == sharding.MESH_AXES


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"data": 3}, "Nearest that would: mesh.data=8"),
        ({"data": 1, "tensor": 6}, "mesh.tensor=4, mesh.data=2"),
        ({"data": -1, "fsdp": 5}, "mesh.fsdp=4, mesh.data=2"),
        ({"data": -1, "fsdp": -1}, "at most one is -1"),
        ({"data": 0}, "positive"),
        ({"model": 2}, "Unknown mesh axis 'model'"),
    ],
)
def test_meshes_that_do_not_fit(sizes, says):
    with pytest.raises(ConfigError, match=says):
        mesh(**sizes)


def test_multi_slice_data_axis_is_laid_over_slices():
    with pytest.raises(ConfigError, match="dcn=3"):
        sharding.make_mesh({"data": 8, "dcn": 3})


def spec(axes, shape, rules=sharding.PARAMETER_RULES, **sizes):
    return tuple(sharding.resolve(axes, rules, mesh(**sizes), shape, "w"))


def test_resolve():
    assert spec(("embed", "mlp"), (64, 32), data=2, fsdp=2, tensor=2) == ("fsdp", "tensor")
    assert spec(("layers", "embed", "mlp"), (3, 64, 32), fsdp=8) == (None, "fsdp", None)
    assert spec(("batch", "length", None), (16, 8, 5), sharding.ACTIVATION_RULES, data=2, fsdp=4)[
        0
    ] == ("data", "fsdp")


@pytest.mark.parametrize(
    ("axes", "shape", "says"),
    [
        (("embed", "embed"), (64, 64), "would split both"),
        (("embed", "mlp"), (62, 32), "does not divide over"),
        (("embed", "mpl"), (64, 32), "unknown logical axis 'mpl'"),
    ],
)
def test_resolve_refuses(axes, shape, says):
    with pytest.raises(ConfigError, match=says):
        spec(axes, shape, fsdp=4, tensor=2)


def test_constraints_are_in_the_program():
    """Linen drops logical constraints silently under a plain `with mesh:`; ours must not."""
    with sharding.use_layout(mesh(data=4, tensor=2)):
        text = str(
            jax.make_jaxpr(lambda x: sharding.shard(x, "batch", "length", "mlp"))(
                jnp.zeros((8, 4, 6))
            )
        )
    assert "sharding_constraint" in text and "tensor" in text
    outside = str(jax.make_jaxpr(lambda x: sharding.shard(x, "batch"))(jnp.zeros(8)))
    assert "sharding_constraint" not in outside


def test_activations_that_do_not_divide_are_refused_inside_and_free_outside():
    with sharding.use_layout(mesh(data=8)):
        with pytest.raises(ConfigError, match="'batch' of size 3"):
            sharding.shard(jnp.zeros((3,)), "batch")
        with sharding.within(None):
            sharding.shard(jnp.zeros((3,)), "batch")


def boxed():
    def box(shape, axes):
        value = jax.ShapeDtypeStruct(shape, jnp.float32)
        return nn.LogicallyPartitioned(value, axes)

    return {"a": box((64, 32), ("embed", "mlp")), "b": {"scale": box((7,), (None,))}}


def test_shardings_and_report():
    with sharding.use_layout(mesh(data=2, fsdp=2, tensor=2)) as layout:
        places = sharding.parameter_shardings(boxed(), layout)
        rows, totals = sharding_report(sharding.unbox(boxed()), places)
    assert {row.name: row.bytes_per_device for row in rows} == {"a": 64 * 32, "b/scale": 28}
    assert [row.name for row in rows if row.replicated] == ["b/scale"]
    assert totals["bytes_per_device"] == 64 * 32 + 28
    assert totals["replicated_fraction"] == pytest.approx(28 / (64 * 32 * 4 + 28))


@pytest.mark.parametrize(
    ("shape", "axes", "sizes", "wanted"),
    [
        ((512, 1024), ("mlp", "embed"), {"fsdp": 8}, (None, "fsdp")),  # 128 columns each
        ((512, 512), ("mlp", "embed"), {"fsdp": 8}, ("fsdp", None)),  # 64 would be padded
        ((3, 512, 512), (None, "mlp", "embed"), {"fsdp": 8}, (None, "fsdp", None)),
        ((512, 256), ("mlp", "embed"), {"fsdp": 4, "tensor": 2}, (("tensor", "fsdp"), None)),
        ((60, 512), ("mlp", "embed"), {"fsdp": 8}, (None, "fsdp")),  # rows do not divide
        ((512, 512), ("vocab", "embed"), {"fsdp": 8}, (None, "fsdp")),  # looked up by rows
    ],
)
def test_rows_are_split_where_columns_would_be_narrow(shape, axes, sizes, wanted):
    value = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), axes)
    layout = sharding.make_layout(mesh(data=1, **sizes))
    assert tuple(sharding.parameter_shardings({"w": value}, layout)["w"].spec) == wanted


def test_optimizer_state_follows_its_parameters():
    with sharding.use_layout(mesh(fsdp=8)) as layout:
        places = sharding.parameter_shardings(boxed(), layout)
        shapes = sharding.unbox(boxed())
        state = {"mu": shapes, "count": jax.ShapeDtypeStruct((), jnp.int32)}
        found = sharding.like_parameters(state, places, layout.mesh)
    assert tuple(found["mu"]["a"].spec) == ("fsdp", None)
    assert found["count"].is_fully_replicated


def test_zero1_splits_optimizer_state_over_data_too():
    with sharding.use_layout(sharding.make_layout(mesh(data=4, fsdp=2), {"zero1": True})) as layout:
        finer = sharding.parameter_shardings(boxed(), layout, layout.optimizer)
        plain = sharding.parameter_shardings(boxed(), layout)
        shapes = sharding.unbox(boxed())
    held = [sharding_report(shapes, places)[1]["bytes_per_device"] for places in (plain, finer)]
    assert held == [64 * 32 * 4 / 2 + 28, 64 * 32 * 4 / 8 + 28]


@pytest.mark.parametrize(
    ("sizes", "choices", "says"),
    [
        ({"fsdp": 8}, {"zero1": True}, "sharding.zero1 has nothing to split: mesh.data is 1"),
        ({"data": 8}, {"sequence": True}, "mesh.tensor is 1"),
        ({"data": 8}, {"repeats": 2}, "mesh.stage is 1"),
        ({"data": 4, "stage": 2}, {"repeats": 0}, "repeats=0"),
    ],
)
def test_choices_without_an_axis_are_refused(sizes, choices, says):
    with pytest.raises(ConfigError, match=says):
        sharding.make_layout(mesh(**sizes), choices)


def test_a_mesh_axis_that_splits_nothing_is_refused():
    """Experts of a dense model, stages of one without layers: all would compute the same."""
    with (
        sharding.use_layout(mesh(data=4, expert=2)) as layout,
        pytest.raises(ConfigError, match=r"mesh.expert=2 splits no parameter.*\n.*mesh.expert=1"),
    ):
        sharding.parameter_shardings(boxed(), layout)


def test_report_of_activations():
    def block(x):
        h = sharding.shard(jnp.tile(x, (1, 1, 4)), "batch", "length", "mlp")
        return sharding.shard(h[..., :16], "batch", "sequence", None)

    made = sharding.make_layout(mesh(data=2, tensor=4), {"sequence": True})
    with sharding.use_layout(made):
        rows = activation_report(block, jax.ShapeDtypeStruct((8, 32, 16), jnp.float32))
    assert [(row.name, row.bytes_per_device) for row in rows] == [
        ("batch/length/mlp", 8 * 32 * 64 * 4 // 8),
        ("batch/sequence/None", 8 * 32 * 16 * 4 // 8),
    ]


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "none"


def test_slices_are_the_slow_part_of_the_data_axis():
    chips = [Chip(i, i // 4, (i // 4) % 2) for i in range(16)]
    made = sharding.make_mesh({"data": 4, "fsdp": 4, "dcn": 2}, chips)
    data = made.devices.reshape(4, 4)
    assert [{chip.slice_index for chip in row} for row in data] == [{0}, {0}, {1}, {1}]
    with pytest.raises(ConfigError, match="dcn=4, but the devices are of 2 slices"):
        sharding.make_mesh({"data": 4, "fsdp": 4, "dcn": 4}, chips)


def test_rows_are_placed_whole():
    rows = np.arange(8 * 16).reshape(8, 16)
    made = mesh(data=2, context=2, tensor=2)
    assert shards.host_share(made) == (0, 1)
    placed = shards.place_rows(made, rows)
    assert placed.sharding.shard_shape((8, 16)) == (4, 8)
    np.testing.assert_array_equal(placed, rows)


def test_inputs_divide():
    with sharding.use_layout(mesh(data=2, fsdp=2, context=2)) as layout:
        assert sharding.smallest_input(layout) == (4, 16)
        placed = jax.device_put(np.zeros((4, 16)), sharding.batch_sharding(layout.mesh, 2))
    assert placed.sharding.shard_shape((4, 16)) == (1, 8)


def test_axes_that_do_not_match_a_slice_are_laid_across_parts(monkeypatch):
    """Eight experts on a 4 x 4 x 4 pod: JAX refuses to split an axis of the pod unless told to."""

    def refuse(*arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(jax, "make_mesh", refuse)
    made = mesh(expert=8)
    assert dict(made.shape)["expert"] == 8 and tuple(made.shape) == sharding.MESH_AXES
    assert sorted(device.id for device in made.devices.flat) == list(range(8))

# SPDX-License-Identifier: Apache-2.0
"""What devices and processes do with their own parts of arrays; `sharding` says who holds which."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm.core import sharding


def on_shards(
    function: Callable[..., Any], inputs: Sequence[Sequence[str | None]], outputs: Any
) -> Callable[..., Any]:
    """Run a function on every device's own parts of its arguments (`jax.shard_map`).

    Args:
        function: may use collectives over any mesh axis.
        inputs: logical axes of each argument.
        outputs: logical axes of the result, or a list of them.
    """
    layout = sharding.current_layout()
    assert layout is not None

    def call(*arrays: jax.Array) -> Any:
        def spec(axes: Sequence[str | None], shape: Sequence[int]) -> Any:
            return sharding.resolve(axes, layout.activations, layout.mesh, shape, "argument")

        into = tuple(spec(axes, x.shape) for axes, x in zip(inputs, arrays, strict=True))
        several = isinstance(outputs, list)
        # A size of 0 divides by everything: what comes out is as large as its parts.
        out = [spec(axes, (0,) * len(axes)) for axes in (outputs if several else [outputs])]
        mapped = jax.shard_map(
            function,
            mesh=None if layout.mapped else layout.mesh,
            in_specs=into,
            out_specs=tuple(out) if several else out[0],
            axis_names=set(sharding.MESH_AXES) - set(layout.mapped),
            check_vma=False,
        )
        return mapped(*arrays)

    return call


def over_stages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function over the first dimension of trees of arrays: that of stages, of which each
    runs on its own devices. Inside, the compiler goes on placing the other axes; the batch is one
    that mesh.stage does not split."""
    layout = sharding.current_layout()
    assert layout is not None
    rules = {
        name: tuple(m for m in axes if m != "stage") for name, axes in layout.activations.items()
    }

    def local(*trees: Any) -> Any:
        with sharding.within(layout._replace(activations=rules, mapped=("stage",))):
            out = function(*jax.tree.map(lambda x: x[0], trees))
        return jax.tree.map(lambda x: x[None], out)

    spec = sharding.resolve(("stage",), layout.activations, layout.mesh, (0,))
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=spec,
        out_specs=spec,
        axis_names={"stage"},
        check_vma=False,
    )


def host_share(mesh: Mesh) -> tuple[int, int]:
    """Return which slice of every batch this process reads, as (index, count of equal slices).

    Processes whose devices hold the same rows, as where mesh.tensor spans them, read the same.
    """
    total = sharding.batch_parts(mesh)
    places = sharding.batch_sharding(mesh, 1).addressable_devices_indices_map((total,)).values()
    rows = sorted({index[0].indices(total)[0] for index in places if index is not None})
    slices = (n for n in range(total, 0, -1) if total % n == 0)
    size = total // next(n for n in slices if rows[0] * n // total == rows[-1] * n // total)
    return rows[0] // size, total // size


def place_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Lay this process's slice of a batch over the mesh: [B / count, T, …] -> [B, T, …]."""
    index, count = host_share(mesh)
    first = index * len(rows)

    def part(where: tuple[slice, ...] | None) -> np.ndarray:
        assert where is not None
        start, stop, _ = where[0].indices(len(rows) * count)
        return rows[(slice(start - first, stop - first), *where[1:])]

    shape = (len(rows) * count, *rows.shape[1:])
    return jax.make_array_from_callback(shape, sharding.batch_sharding(mesh, rows.ndim), part)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Compute without a layout; of several processes each for itself, on its first device."""
    with sharding.within(None):
        if jax.process_count() == 1:
            yield
            return
        with jax.set_mesh(sharding.make_mesh({"data": 1}, jax.local_devices()[:1])):
            yield


def own_copy(tree: Any) -> Any:
    """Return a tree of arrays whole on this process's first device; as they are if it is alone.

    All processes must call it together.
    """
    if jax.process_count() == 1:
        return tree

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        assert isinstance(x.sharding, jax.NamedSharding)
        return _replicate(x.sharding.mesh)(x).addressable_data(0)

    return jax.tree.map(whole, tree)


@functools.cache
def _replicate(mesh: Any) -> Any:
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))


def own_part(items: Sequence[Any]) -> Sequence[Any]:
    """Return this process's part of a list that all have; what `joined` puts together again."""
    size = len(items) // jax.process_count()
    return items[jax.process_index() * size :][:size]


def joined(tree: Any) -> Any:
    """Return host arrays with the parts of all processes, in their order, along the first axis.

    Bit for bit, whatever the type; all processes must call it together, with parts of one shape.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    def join(x: np.ndarray) -> np.ndarray:
        own = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)
        found = np.asarray(multihost_utils.process_allgather(own, tiled=True))
        return found.view(x.dtype).reshape(-1, *x.shape[1:])

    return jax.tree.map(join, tree)

# SPDX-License-Identifier: Apache-2.0
"""Send every token to all its experts, dropping none, wherever the experts' weights live.

Each device sorts its own tokens by expert. Where experts are split over mesh.expert the sorted rows
go to the devices that hold them, are sorted again, multiplied group by group, and sent back the way
they came: two all-to-alls of exactly the rows needed (`jax.lax.ragged_all_to_all`). Nothing but the
order of sums differs from one device.

Letters: M tokens of a device, J choices per token, R = M J rows, E experts, P devices that share
them, S rows of the buffer a device receives into.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm.core import sharding, shards
from llm.models import lowbit

Array = jax.Array
Axes = tuple[str | None, ...]

# How weights, and the two factors of their low-rank updates, are split; gathered over mesh.fsdp.
AXES: dict[str, Axes] = {
    "gate": ("expert", None, "mlp"),
    "up": ("expert", None, "mlp"),
    "down": ("expert", "mlp", None),
}


class Experts(NamedTuple):
    """The stacked weights of all experts, or of a device's own."""

    gate: Array  # [E, D, F]
    up: Array  # [E, D, F]
    down: Array  # [E, F, D]
    act: Callable[[Array], Array]
    matmul: str = "dtype"  # of the groups: see `lowbit`
    updates: Mapping[str, tuple[Array, Array]] = MappingProxyType({})  # A, scale * B per name

    def grouped(self, name: str, rows: Array, sizes: Array) -> Array:
        """Multiply rows, sorted by expert, with their experts' weights; sizes [E] of the groups."""
        out = lowbit.ragged_dot(self.matmul, rows, getattr(self, name), sizes)
        if name not in self.updates:
            return out
        a, b = self.updates[name]
        return out + jax.lax.ragged_dot(jax.lax.ragged_dot(rows, a, sizes), b, sizes)

    def stacked(self, name: str, x: Array) -> Array:  # [B, E, C, in] -> [B, E, C, out]
        """Multiply each expert's own rows with its weights."""
        out = jnp.einsum("BECI,EIO->BECO", x, getattr(self, name))
        if name not in self.updates:
            return out
        a, b = self.updates[name]
        return out + jnp.einsum("BECr,ErO->BECO", jnp.einsum("BECI,EIr->BECr", x, a), b)

    def feed(self, rows: Array, sizes: Array) -> Array:  # [R, D] -> [R, D]
        """Run rows, sorted by expert, through their experts."""
        hidden = self.act(self.grouped("gate", rows, sizes)) * self.grouped("up", rows, sizes)
        return self.grouped("down", hidden, sizes)


def grouped(x: Array, chosen: Array, weights: Array, w: Experts) -> Array:
    """Return the weighted sum of each token's experts.

    Args:
        x: [B, T, D].
        chosen: int [B, T, J], experts.
        weights: [B, T, J], their factors.
        w: all experts.
    """
    layout = sharding.current_layout()
    if layout is None or layout.mesh.size == 1:
        return _combine(x, chosen, weights, functools.partial(_own_rows, w))
    names = list(w.updates)
    arrays = [w.gate, w.up, w.down, *(factor for name in names for factor in w.updates[name])]
    axes = list(AXES.values())
    for name in names:
        first, last = AXES[name][1:]
        axes += [("expert", first, None), ("expert", None, last)]
    expert, tensor = sharding.split_over("expert"), sharding.split_over("mlp")
    native = layout.mesh.devices.flat[0].platform in ("tpu", "gpu")

    def local(x: Array, chosen: Array, weights: Array, *own: Array) -> Array:
        pairs = zip(own[3::2], own[4::2], strict=True)
        updates = dict(zip(names, pairs, strict=True))
        mine = Experts(own[0], own[1], own[2], w.act, w.matmul, updates)
        run = functools.partial(_own_rows, mine)
        if expert:
            run = functools.partial(_sent_rows, mine, expert[0], native)
        y = _combine(x, chosen, weights, run)
        return jax.lax.psum(y, tensor) if tensor else y

    row = ("batch", "length", None)
    return shards.on_shards(local, [row, row, row, *axes], row)(x, chosen, weights, *arrays)


def _combine(
    x: Array, chosen: Array, weights: Array, run: Callable[[Array, Array, int], Array]
) -> Array:
    """Sort choices by expert, run the rows, sort back, and sum each token's with its weights."""
    B, T, D = x.shape
    J = chosen.shape[2]
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    rows = jnp.take(x.reshape(B * T, D), order // J, axis=0)
    out = jnp.take(run(rows, flat, J), jnp.argsort(order), axis=0).reshape(B, T, J, D)
    return jnp.einsum("BTJD,BTJ->BTD", out, weights.astype(out.dtype))


def _own_rows(w: Experts, rows: Array, chosen: Array, choices: int) -> Array:
    """Run sorted rows [R, D] where all experts are at hand."""
    del choices
    return w.feed(rows, jnp.bincount(chosen, length=w.gate.shape[0]).astype(jnp.int32))


def _sent_rows(
    w: Experts, axis: str, native: bool, rows: Array, chosen: Array, choices: int
) -> Array:
    """Run sorted rows [R, D] on the devices that hold their experts."""
    P, own = jax.lax.axis_size(axis), w.gate.shape[0]
    me = jax.lax.axis_index(axis)
    counts = jnp.bincount(chosen, length=P * own).astype(jnp.int32).reshape(P, own)
    counts = jax.lax.all_gather(counts, axis)  # [from, to, expert]
    sent = jnp.sum(counts, axis=2)  # [from, to]
    # A token's choices differ, so a device never gets more of it than it has experts.
    room = P * (len(chosen) // choices) * min(choices, own)
    exchange = functools.partial(_exchange, axis=axis, native=native)
    got = exchange(rows, sent, room)
    ends = jnp.cumsum(counts[:, me].reshape(-1))  # rows come by sender, then by expert
    place = jnp.searchsorted(ends, jnp.arange(room), side="right")
    expert = jnp.where(place < P * own, place % own, own)  # `own`: no row, sorted last
    order = jnp.argsort(expert, stable=True)
    out = w.feed(jnp.take(got, order, axis=0), jnp.sum(counts[:, me], axis=0))
    out = jnp.where((expert < own)[:, None], jnp.take(out, jnp.argsort(order), axis=0), 0)
    return exchange(out, sent.T, len(rows))


def _starts(sizes: Array) -> Array:
    """Return where each part begins, along the last axis."""
    return jnp.cumsum(sizes, axis=-1) - sizes


def _exchange(rows: Array, sizes: Array, room: int, *, axis: str, native: bool) -> Array:
    """Send each device its part of the rows: `sizes` [from, to], parts in order of device.

    Returns:
        [room, D]: the parts received, in order of sender; zeros after them.
    """
    me = jax.lax.axis_index(axis)
    begin = _starts(sizes)  # [from, to] in the sender's rows
    arrive = _starts(sizes.T)  # [to, from] in the receiver's
    empty = jnp.zeros((room, rows.shape[1]), rows.dtype)
    if native:
        return jax.lax.ragged_all_to_all(
            rows, empty, begin[me], sizes[me], arrive[:, me], sizes[:, me], axis_name=axis
        )
    # The CPU backend has no such operation: gather all and pick, which is the same.
    gathered = jax.lax.all_gather(rows, axis)  # [P, R, D]
    place = jnp.arange(room)
    sender = jnp.searchsorted(jnp.cumsum(sizes[:, me]), place, side="right")
    safe = jnp.minimum(sender, len(sizes) - 1)
    index = jnp.clip(begin[safe, me] + place - arrive[me, safe], 0, len(rows) - 1)
    return jnp.where((sender < len(sizes))[:, None], gathered[safe, index], empty)

# SPDX-License-Identifier: Apache-2.0
"""Share causal work evenly among the devices that a sequence is split over.

Cut a row into 2c pieces for c devices. In row order the last device would attend to all the others
and the first to itself only; here device i holds pieces i and 2c-1-i, so all do the same work (as
Llama 3 was trained, arXiv:2407.21783 §3.3.2). Positions and segments travel along, and masks are
made of those, so nothing else in a model notices, but for what counts rows: dropout masks follow
the tokens, and what fills places in row order goes back to it.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from llm.core import sharding, shards
from llm.errors import ConfigError

Array = jax.Array

_ACTIVE: contextvars.ContextVar[bool] = contextvars.ContextVar("zigzag", default=False)


@contextlib.contextmanager
def order(active: bool) -> Iterator[None]:
    """Say that the rows traced meanwhile are in zigzag order (or not)."""
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active() -> bool:
    """Tell whether rows are in zigzag order here."""
    return _ACTIVE.get()


def wanted(length: int) -> bool:
    """Tell whether a causal stack should run on zigzag rows: the length is split over devices.

    Raises:
        ConfigError: the length does not cut into two pieces per device.
    """
    parts = sharding.parts("length")
    if parts == 1:
        return False
    if length % (2 * parts):
        near = max(round(length / (2 * parts)), 1) * 2 * parts
        raise ConfigError(
            f"A length of {length} does not cut into {2 * parts} equal pieces, two for each device "
            f"of mesh.context={parts}.",
            f"The nearest that does is {near}.",
        )
    return True


def _moves(parts: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (device with pieces 2i and 2i+1, device that wants it), for even and odd pieces."""

    def owner(piece: int) -> int:
        return piece if piece < parts else 2 * parts - 1 - piece

    return (
        [(i, owner(2 * i)) for i in range(parts)],
        [(i, owner(2 * i + 1)) for i in range(parts)],
    )


def arrange(x: Array) -> Array:
    """Bring [B, T, ...] from row order into zigzag order."""
    (axis,) = sharding.split_over("length")
    evens, odds = _moves(sharding.parts("length"))

    def local(own: Array) -> Array:
        first, second = jnp.split(own, 2, axis=1)
        even = jax.lax.ppermute(first, axis, evens)
        odd = jax.lax.ppermute(second, axis, odds)
        # Device i's first piece is number i, and of its pieces one is even, the other odd.
        swap = jax.lax.axis_index(axis) % 2 == 1
        return jnp.concatenate([jnp.where(swap, odd, even), jnp.where(swap, even, odd)], axis=1)

    return _mapped(local, x)


def restore(x: Array) -> Array:
    """Undo `arrange`."""
    (axis,) = sharding.split_over("length")
    evens, odds = (
        [(there, here) for here, there in moves] for moves in _moves(sharding.parts("length"))
    )

    def local(own: Array) -> Array:
        first, second = jnp.split(own, 2, axis=1)
        swap = jax.lax.axis_index(axis) % 2 == 1
        even, odd = jnp.where(swap, second, first), jnp.where(swap, first, second)
        return jnp.concatenate(
            [jax.lax.ppermute(even, axis, evens), jax.lax.ppermute(odd, axis, odds)], axis=1
        )

    return _mapped(local, x)


def _mapped(local: Callable[[Array], Array], x: Array) -> Array:
    names = ("batch", "length", *(None,) * (x.ndim - 2))
    return shards.on_shards(local, [names], names)(x)

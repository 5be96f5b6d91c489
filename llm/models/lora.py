# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates: y = x (W + scale * A B), computed without the product A B (arXiv:2106.09685).

Letters: r rank, others as in `layers`. An update follows its map's equation: "BTD,DNH->BTNH" has
A [D, r] and B [r, N, H].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
RANK = "r"


class Maps(NamedTuple):
    """The letters of a map and of its update."""

    inputs: str  # of x
    kernel: str
    output: str
    summed: str  # letters of the kernel that are summed over
    kept: str  # those that reach the output
    a: str
    b: str


def maps(equation: str) -> Maps:
    """Read a map's equation."""
    operands, output = equation.split("->")
    inputs, kernel = operands.split(",")
    summed = "".join(c for c in kernel if c not in output)
    kept = "".join(c for c in kernel if c in output)
    return Maps(inputs, kernel, output, summed, kept, summed + RANK, RANK + kept)


def uniform(fan_in: int) -> Callable[..., Array]:
    """Return the initialiser of A: uniform within ± 1 / sqrt(fan_in), torch's for linear maps."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Any, dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def update(m: Maps, x: Array, a: Array, b: Array, scale: float) -> Array:
    """Return scale * x A B."""
    rest = "".join(c for c in m.inputs if c not in m.summed)
    low = jnp.einsum(f"{m.inputs},{m.a}->{rest}{RANK}", x, a)
    return jnp.einsum(f"{rest}{RANK},{m.b}->{m.output}", low, b) * jnp.asarray(scale, x.dtype)


def column_norm(m: Maps, kernel: Array, a: Array, b: Array, scale: float) -> Array:
    """Return the norm over the inputs of every output of W + scale * A B, in float32.

    |W + s A B|² = |W|² + 2 s (Wᵀ A) · B + s² Bᵀ (Aᵀ A) B, so that A B is never formed.
    """
    w, a, b = (x.astype(jnp.float32) for x in (kernel, a, b))
    own = jnp.einsum(f"{m.kernel},{m.kernel}->{m.kept}", w, w)
    mixed = jnp.einsum(f"{m.kernel},{m.a}->{m.b}", w, a)
    cross = jnp.einsum(f"{m.b},{m.b}->{m.kept}", mixed, b)
    gram = jnp.einsum(f"{m.summed}r,{m.summed}s->rs", a, a)
    square = jnp.einsum(f"rs,r{m.kept},s{m.kept}->{m.kept}", gram, b, b)
    return jnp.sqrt(jnp.maximum(own + 2 * scale * cross + scale**2 * square, 1e-30))


def merged(kernel: Array, a: Array, b: Array, scale: float, magnitude: Array | None) -> Array:
    """Return W + scale * A B, rescaled to the magnitudes of DoRA: one layer, any map.

    Args:
        kernel: [inputs…, outputs…].
        a: [inputs…, r].
        b: [r, outputs…].
        scale: of the product.
        magnitude: [outputs…] or None.
    """
    w = kernel.astype(jnp.float32)
    w = w + scale * jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), 1)
    if magnitude is not None:
        summed = tuple(range(a.ndim - 1))
        norm = jnp.sqrt(jnp.sum(jnp.square(w), axis=summed, keepdims=True))
        ratio = magnitude.astype(jnp.float32).reshape(norm.shape) / norm
        w = w * jnp.broadcast_to(ratio, w.shape)
    return w.astype(kernel.dtype)

# SPDX-License-Identifier: Apache-2.0
"""The product of states and weights, with a gradient that XLA's CPU backend computes quickly."""

import functools
import math

import jax
import jax.numpy as jnp

from llm.models.attention import platform

Array = jax.Array
Places = tuple[tuple[int, ...], tuple[int, ...]]  # axes of states and kernel that are summed over


def contract(x: Array, kernel: Array, places: Places, dtype: jnp.dtype | None = None) -> Array:
    """Sum over axes of states and kernel: what is left of the states' axes, then the kernel's.

    Args:
        dtype: of the result; None = that of the operands.
    """
    if x.dtype == kernel.dtype == jnp.float32 and platform() == "cpu":
        return _contract(places, x, kernel)
    return jax.lax.dot_general(x, kernel, (places, ((), ())), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contract(places: Places, x: Array, kernel: Array) -> Array:
    return jax.lax.dot_general(x, kernel, (places, ((), ())))


def _forward(places: Places, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _contract(places, x, kernel), (x, kernel)


def _backward(places: Places, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Return the gradients of states and kernel.

    The kernel's sums over all tokens, for which the CPU backend transposes its first operand,
    along with the elementwise work that made it. JAX puts `dy` first; here it is the smaller one.
    """
    x, kernel = saved
    sum_x, sum_k = places
    keep_x = tuple(i for i in range(x.ndim) if i not in sum_x)
    keep_k = tuple(i for i in range(kernel.ndim) if i not in sum_k)
    tokens, outputs = tuple(range(len(keep_x))), tuple(range(len(keep_x), dy.ndim))
    dx = jax.lax.dot_general(dy, kernel, ((outputs, keep_k), ((), ())))
    # The summed axes come in the order of the operand that had them.
    dx = _arrange(dx, [*keep_x, *(sum_x[sum_k.index(i)] for i in sorted(sum_k))])
    inner = [sum_k[sum_x.index(i)] for i in sorted(sum_x)]
    if math.prod(x.shape) <= math.prod(dy.shape):
        dk = jax.lax.dot_general(x, dy, ((keep_x, tokens), ((), ())))
        return dx, _arrange(dk, [*inner, *keep_k])
    dk = jax.lax.dot_general(dy, x, ((tokens, keep_x), ((), ())))
    return dx, _arrange(dk, [*keep_k, *inner])


def _arrange(x: Array, axes: list[int]) -> Array:
    """Move each axis to where `axes` says it belongs."""
    return jnp.transpose(x, [axes.index(i) for i in range(x.ndim)])


_contract.defvjp(_forward, _backward)

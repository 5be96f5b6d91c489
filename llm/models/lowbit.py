# SPDX-License-Identifier: Apache-2.0
"""Multiply weights and states in 8 bits while training, through qwix: `config.matmul`.

Each product's operands are scaled per row or column to the range of the narrow type, forwards and
backwards; weights, states and gradients themselves keep their types.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import ConfigError

Array = jax.Array

# config.matmul -> types of (weights and states, incoming gradients). The 8-bit floats are those of
# arXiv:2209.05433: more precision forwards, more range backwards.
TYPES = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}


@functools.cache
def _provider(name: str) -> Any:
    try:
        import qwix
    except ImportError as error:
        raise ConfigError(
            f"model.matmul={name!r} needs qwix.", 'Run: pip install "jax-llm[quant]"'
        ) from error
    forward, backward = TYPES[name]
    rule = qwix.QtRule(weight_qtype=forward, act_qtype=forward, bwd_qtype=backward)
    return qwix.QtProvider([rule])


def dot_general(name: str, x: Array, kernel: Array, dimensions: Any) -> Array:
    """Contract like `jax.lax.dot_general`, in the types that `name` stands for.

    Args:
        name: a key of TYPES.
    """
    return _provider(name).dot_general(x, kernel, dimensions).astype(x.dtype)


def ragged_dot(name: str, rows: Array, kernels: Array, sizes: Array) -> Array:
    """Multiply groups of rows like `jax.lax.ragged_dot`, in the types that `name` stands for."""
    if name == "dtype":
        return jax.lax.ragged_dot(rows, kernels, sizes)
    return _provider(name).ragged_dot(rows, kernels, sizes).astype(rows.dtype)

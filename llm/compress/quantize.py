# SPDX-License-Identifier: Apache-2.0
"""Quantise a model's weights after training, with qwix: round to nearest, one scale per output.

The contraction axes of a weight share a scale, so that `x @ (q * scale) = (x @ q) * scale`. Which
axes those are follows from the logical axes that every parameter carries.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm.compress.names import KEPT, QUANTIZED
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError
from llm.models import quant

METHODS = ("int8", "int4")
_STACKED = ("layers", "expert", "stage")
_INPUT_FIRST = "embed"


def contraction_axes(names: Sequence[str | None]) -> tuple[int, ...]:
    """Return the axes of a weight that a matrix product sums over.

    Args:
        names: its logical axes, such as ("layers", "embed", "heads", "head_dim").

    Returns:
        Axis numbers; () for a weight that is not a matrix.
    """
    axes = [axis for axis, name in enumerate(names) if name not in _STACKED]
    if len(axes) < 2:
        return ()
    if "vocab" in names or names[axes[0]] == _INPUT_FIRST:
        return tuple(axis for axis in axes if names[axis] == _INPUT_FIRST)
    return tuple(axes[:-1])


def parameter_axes(model: Any) -> dict[str, tuple[str | None, ...]]:
    """Return {parameter: logical axes} of a Flax model, without making the parameters."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    return {
        name: tuple(leaf.names) if is_box(leaf) else (None,) * len(leaf.shape)
        for name, leaf in flatten(boxed, is_leaf=is_box).items()
    }


def quantize(
    params: Any,
    axes: Mapping[str, Sequence[str | None]],
    method: str = "int8",
    group: int = 0,
    include: str = QUANTIZED,
    exclude: str = KEPT,
) -> dict[str, Any]:
    """Quantise the matrices of a parameter tree.

    Args:
        params: nested dict of arrays.
        axes: of `parameter_axes`.
        method: "int8" or "int4".
        group: input values that share a scale; 0 for one scale per output. A weight whose input
            size is no multiple of it falls back to one scale per output.
        include, exclude: regular expressions (searched) of the parameters' names.

    Returns:
        The tree with {"q" or "q4", "scale"} in the place of each quantised parameter.

    Raises:
        ConfigError: an unknown method, or nothing matches.
    """
    if method not in METHODS:
        raise ConfigError(f"Unknown method {method!r}.", f"Choose from: {', '.join(METHODS)}.")
    chosen: dict[str, Any] = {}
    count = 0
    for name, leaf in flatten(params).items():
        summed = contraction_axes(axes[name])
        wanted = re.search(include, name) and not (exclude and re.search(exclude, name))
        if not wanted or not summed:
            chosen[name] = leaf
            continue
        chosen[name] = quantize_leaf(leaf, summed, method, group)
        count += 1
    if not count:
        raise ConfigError(
            f"No parameter matches include={include!r}.", "List the names with lm.params."
        )
    return unflatten(chosen)


def quantize_leaf(
    weight: Any, summed: Sequence[int], method: str = "int8", group: int = 0
) -> dict[str, Any]:
    """Quantise one weight, the axes in `summed` sharing a scale (in blocks of `group`)."""
    array = jnp.asarray(weight, jnp.float32)
    apart = [axis for axis in range(array.ndim) if axis not in summed]
    tiles = {}
    if group and array.shape[summed[-1]] % group == 0:
        tiles[summed[-1]] = group
        apart += summed[:-1]
    integers, scale = _round(array, method, tuple(apart), tuple(tiles.items()))
    if method == "int4" and array.shape[-1] % 2 == 0:
        return {"q4": quant.pack_nibbles(integers), "scale": np.asarray(scale)}
    return {"q": np.asarray(integers), "scale": np.asarray(scale)}


@functools.partial(jax.jit, static_argnames=("method", "apart", "tiles"))
def _round(
    array: jax.Array, method: str, apart: tuple[int, ...], tiles: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, jax.Array]:
    """Return qwix' integers (as int8) and scales; one small program per shape of weight."""
    try:
        import qwix
    except ImportError as error:
        raise ConfigError("Quantising needs qwix.", 'Run: pip install "jax-llm[quant]"') from error
    made = qwix.quantize(array, jnp.dtype(method), channelwise_axes=apart, tiled_axes=dict(tiles))
    return made.qvalue.astype(jnp.int8), made.scale.astype(jnp.float32)

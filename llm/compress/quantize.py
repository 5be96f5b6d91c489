# SPDX-License-Identifier: Apache-2.0
"""Quantise a model's weights after training, with qwix: to nearest, or by GPTQ.

The contraction axes of a weight share a scale, so that `x @ (q * scale) = (x @ q) * scale`. Which
axes those are follows from the logical axes that every parameter carries.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm.compress import matrices
from llm.compress.names import KEPT, QUANTIZED
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError
from llm.models import quant

METHODS = ("int8", "int4")


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
        summed = matrices.contraction_axes(axes[name])
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
    return _leaf(integers, scale, method)


def _leaf(integers: Any, scale: Any, method: str) -> dict[str, Any]:
    if method == "int4" and integers.shape[-1] % 2 == 0:
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


def gptq(
    params: Any,
    axes: Mapping[str, Sequence[str | None]],
    moments: Mapping[str, np.ndarray],
    bits: int = 4,
    group: int = 32,
    damping: float = 0.01,
    include: str = QUANTIZED,
    exclude: str = KEPT,
) -> dict[str, Any]:
    """Quantise so that what each matrix says of calibration texts changes least.

    Inputs are rounded one after the other, and what each loses is made up for by those that follow
    (Frantar et al. 2022, arXiv:2210.17323); the rounding of a matrix is qwix'. Parameters that no
    moment is known of (embeddings, experts) are rounded to nearest.

    Args:
        params, axes, group, include, exclude: as for `quantize`.
        moments: of `calibrate.Calibration`.
        bits: 4 or 8.
        damping: share of the mean of a moment's diagonal that is added to it.

    Raises:
        ConfigError: other bits, or nothing matches.
    """
    if bits not in (4, 8):
        raise ConfigError(f"bits={bits} is neither 4 nor 8.", "Set the variant's bits to 4 or 8.")
    method = f"int{bits}"
    rounded = flatten(
        quantize(params, axes, method, group, include, exclude), is_leaf=quant.is_quantized
    )
    for name, weight in flatten(params).items():
        if not quant.is_quantized(rounded[name]):
            continue
        split = matrices.split(weight, axes[name])
        read = matrices.modules(name, len(split))
        if not all(module in moments for module in read):
            continue
        scales = np.shape(rounded[name]["scale"])
        blocks = math.prod(scales[axis] for axis in matrices.contraction_axes(axes[name]))
        tile = group if blocks > 1 else 0
        made = [
            _gptq(jnp.asarray(matrix), jnp.asarray(moments[module]), method, tile, damping)
            for matrix, module in zip(split, read, strict=True)
        ]
        integers, scale = (np.stack([np.asarray(one[i]) for one in made]) for i in (0, 1))
        rounded[name] = _leaf(
            matrices.join(integers, np.shape(weight), axes[name]),
            matrices.join(scale, scales, axes[name]),
            method,
        )
    return unflatten(rounded)


@functools.partial(jax.jit, static_argnames=("method", "tile", "damping"))
def _gptq(
    matrix: jax.Array, moment: jax.Array, method: str, tile: int, damping: float
) -> tuple[jax.Array, jax.Array]:
    """Return integers (as int8) [outputs, inputs] and scales [outputs, blocks]."""
    from qwix.contrib import gptq_core

    how = gptq_core.qarray.HowToQuantize(
        qtype=method, channelwise_axes=(0,), tiled_axes={1: tile} if tile else {}
    )
    with jax.numpy_rank_promotion("allow"):  # qwix relies on it
        made, _ = gptq_core.quantize_weight(matrix, moment, how, percdamp=damping)
    return made.qvalue.astype(jnp.int8), made.scale.astype(jnp.float32)

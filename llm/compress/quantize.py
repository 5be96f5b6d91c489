# SPDX-License-Identifier: Apache-2.0
"""Quantise a model's weights after training: to nearest, with qwix, or by GPTQ.

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
    (Frantar et al. 2022, arXiv:2210.17323). Parameters that no moment is known of (embeddings, the
    output head, experts) are rounded to nearest.

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
            round_in_turn(matrix, moments[module], 2 ** (bits - 1) - 1, tile, damping)
            for matrix, module in zip(split, read, strict=True)
        ]
        integers, scale = (np.stack([np.asarray(one[i]) for one in made]) for i in (0, 1))
        rounded[name] = _leaf(
            matrices.join(integers, np.shape(weight), axes[name]),
            matrices.join(scale, scales, axes[name]),
            method,
        )
    return unflatten(rounded)


@functools.partial(jax.jit, static_argnames=("levels", "tile", "damping"))
def round_in_turn(
    matrix: jax.Array, moment: jax.Array, levels: int, tile: int, damping: float
) -> tuple[jax.Array, jax.Array]:
    """Round a matrix input by input, the error of each spread over those that follow.

    Args:
        matrix: float32 [outputs, inputs].
        moment: float32 [inputs, inputs], the mean of x xᵀ.
        levels: the largest integer, 7 or 127.
        tile: inputs that share a scale; 0 for one scale per output.
        damping: see `gptq`.

    Returns:
        int8 [outputs, inputs] and scales float32 [outputs, blocks].
    """
    outputs, inputs = matrix.shape
    unused = jnp.diag(moment) == 0
    matrix = jnp.where(unused[None], 0.0, matrix)
    added = damping * jnp.mean(jnp.diag(moment)) + unused
    lower = jnp.linalg.cholesky(moment + jnp.diag(added))
    inverse = jax.scipy.linalg.cho_solve((lower, True), jnp.eye(inputs))
    spread = jnp.linalg.cholesky(inverse).T  # upper: row i says how the error of input i spreads
    width = tile or max(size for size in range(1, 129) if inputs % size == 0)
    whole = _scale(matrix, levels)

    def block(number: Any, carry: Any) -> Any:
        weights, integers, scales = carry
        start = number * width
        here = jax.lax.dynamic_slice(weights, (0, start), (outputs, width))
        scale = _scale(here, levels) if tile else whole
        rows = jax.lax.dynamic_slice(spread, (start, 0), (width, inputs))
        within = jax.lax.dynamic_slice(rows, (0, start), (width, width))

        def column(i: Any, carry: Any) -> Any:
            here, rounded, errors = carry
            weight = here[:, i]
            nearest = jnp.clip(jnp.round(weight / scale), -levels - 1, levels)
            error = (weight - nearest * scale) / within[i, i]
            here = here - error[:, None] * within[i][None]
            return here, rounded.at[:, i].set(nearest), errors.at[:, i].set(error)

        blank = jnp.zeros_like(here)
        _, rounded, errors = jax.lax.fori_loop(0, width, column, (here, blank, blank))
        later = jnp.arange(inputs) >= start + width
        weights = weights - errors @ (rows * later[None])
        integers = jax.lax.dynamic_update_slice(integers, rounded, (0, start))
        return weights, integers, scales.at[:, number].set(scale)

    blocks = inputs // width
    carry = (matrix, jnp.zeros_like(matrix), jnp.zeros((outputs, blocks)))
    _, integers, scales = jax.lax.fori_loop(0, blocks, block, carry)
    return integers.astype(jnp.int8), scales if tile else whole[:, None]


def _scale(matrix: jax.Array, levels: int) -> jax.Array:
    """Return the scale of each output, as qwix has it: the largest value is half a step beyond."""
    largest = jnp.max(jnp.abs(matrix), axis=1)
    return jnp.where(largest > 0, largest / (levels + 0.5), 1.0)

# SPDX-License-Identifier: Apache-2.0
"""Prune a model: weights to zero by size or by what they do, whole layers, hidden units.

Zeros leave the model's shape as it is: they are for storage, and for hardware that skips them.
Layers and hidden units are really gone, and a model that lost some is healed by distillation from
the whole one.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm.compress import matrices
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError
from llm.models.config import TransformerConfig

Axes = Mapping[str, Sequence[str | None]]


def zero(
    params: Any,
    axes: Axes,
    squares: Mapping[str, np.ndarray] | None,
    sparsity: float,
    pattern: str,
    include: str,
    exclude: str,
) -> dict[str, Any]:
    """Set weights of matrices to zero.

    Without `squares` the smallest of a matrix; with them, of every output, those of the least
    |w| times the norm of what it is multiplied by (Wanda, Sun et al. 2023, arXiv:2306.11695).

    Args:
        params: nested dict of arrays.
        axes: of `quantize.parameter_axes`.
        squares: of `calibrate.Calibration`, or None.
        sparsity: share of zeros in each matrix.
        pattern: "2:4" keeps 2 of every 4 inputs in a row instead; "" for none.
        include, exclude: regular expressions (searched) of the parameters' names.

    Raises:
        ConfigError: a share that is none, a pattern that does not divide a matrix, nothing
            matches, or what a matrix reads was not measured.
    """
    if not 0 < sparsity < 1:
        raise ConfigError(f"sparsity={sparsity} is no share.", "Use one between 0 and 1.")
    made, count = {}, 0
    for name, weight in flatten(params).items():
        chosen = re.search(include, name) and not (exclude and re.search(exclude, name))
        if not chosen or not matrices.contraction_axes(axes[name]):
            made[name] = weight
            continue
        split = matrices.split(weight, axes[name])
        scores = np.abs(split)
        if squares is not None:
            scores = scores * np.sqrt(_measured(name, len(split), squares))[:, None]
        kept = np.stack([_kept(s, sparsity, pattern, squares is not None, name) for s in scores])
        dtype = np.asarray(weight).dtype
        made[name] = matrices.join(split * kept, np.shape(weight), axes[name]).astype(dtype)
        count += 1
    if not count:
        raise ConfigError(
            f"No parameter matches include={include!r}.", "List the names with lm.params."
        )
    return unflatten(made)


def _measured(name: str, count: int, squares: Mapping[str, np.ndarray]) -> np.ndarray:
    try:
        return np.stack([squares[module] for module in matrices.modules(name, count)])
    except KeyError as error:
        raise ConfigError(
            f"What {name} reads is not measured.", "Exclude it, or prune by method='magnitude'."
        ) from error


def _kept(
    scores: np.ndarray, sparsity: float, pattern: str, by_output: bool, name: str
) -> np.ndarray:
    """Return which weights [outputs, inputs] stay."""
    if pattern:
        keep, size = _read_pattern(pattern)
        if scores.shape[1] % size:
            raise ConfigError(
                f"{name} has {scores.shape[1]} inputs, no multiple of the pattern's {size}.",
                "Exclude it, or use sparsity without a pattern.",
            )
        groups, drop = scores.reshape(-1, size), size - keep
    else:
        groups = scores if by_output else scores.reshape(1, -1)
        drop = int(sparsity * groups.shape[1])
    order = np.argsort(groups, axis=1, kind="stable")
    kept = np.ones(groups.shape, bool)
    np.put_along_axis(kept, order[:, :drop], False, axis=1)
    return kept.reshape(scores.shape)


def _read_pattern(pattern: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise ConfigError(f"pattern={pattern!r} is none.", "Write N:M with N below M, as 2:4.")
    return int(found[1]), int(found[2])


def drop_layers(
    params: Any, axes: Axes, config: TransformerConfig, influence: np.ndarray, layers: int
) -> tuple[dict[str, Any], TransformerConfig]:
    """Leave out the layers that turn the residual state least.

    Args:
        params, axes: as for `zero`.
        config: of a decoder.
        influence: [layers] of `calibrate.Calibration`.
        layers: how many stay.

    Raises:
        ConfigError: not fewer layers than there are, or layers of several kinds.
    """
    _require_fewer("layers", layers, config.n_layers)
    if config.window and len(set(config.window_pattern)) > 1:
        raise ConfigError(
            f"Layers are of the kinds {config.window_pattern!r} in turn: without some of them "
            "others would change theirs.",
            "Prune hidden units (method='hidden') instead.",
        )
    kept = np.sort(np.argsort(-influence, kind="stable")[:layers])
    return _take(params, axes, "layers", kept), dataclasses.replace(config, n_layers=layers)


def drop_hidden(
    params: Any,
    axes: Axes,
    config: TransformerConfig,
    squares: Mapping[str, np.ndarray],
    d_ff: int,
) -> tuple[dict[str, Any], TransformerConfig]:
    """Leave out hidden units of each layer's feed-forward.

    Those stay that write most: the norm of what a unit holds times that of its row of the output
    matrix, the importance of Wanda summed over outputs.

    Args:
        params, axes, squares: as for `zero`.
        config: of a decoder without experts.
        d_ff: how many stay in each layer.

    Raises:
        ConfigError: not fewer than there are, or a model with experts.
    """
    _require_fewer("d_ff", d_ff, config.d_ff)
    down = "decoder/layers/mlp/down/kernel"
    if down not in axes:
        raise ConfigError("The model has no plain feed-forward.", "Choose another method.")
    rows = matrices.split(flatten(params)[down], axes[down])  # [layers, D, F]
    norms = np.sqrt(_measured(down, len(rows), squares)) * np.linalg.norm(rows, axis=1)
    kept = np.sort(np.argsort(-norms, axis=1, kind="stable")[:, :d_ff], axis=1)
    return _take(params, axes, "mlp", kept), dataclasses.replace(config, d_ff=d_ff)


def _require_fewer(what: str, wanted: int, there: int) -> None:
    if not 0 < wanted < there:
        raise ConfigError(f"{what}={wanted} of {there}.", f"Use 1 to {there - 1}.")


def _take(params: Any, axes: Axes, axis: str, kept: np.ndarray) -> dict[str, Any]:
    """Keep these places [n], or those of each layer [layers, n], along an axis."""
    made = {}
    for name, leaf in flatten(params).items():
        if axis not in axes[name]:
            made[name] = leaf
            continue
        place = list(axes[name]).index(axis)
        if kept.ndim == 1:
            made[name] = np.take(np.asarray(leaf), kept, axis=place)
            continue
        shape = [1] * np.ndim(leaf)
        shape[list(axes[name]).index("layers")], shape[place] = kept.shape
        made[name] = np.take_along_axis(np.asarray(leaf), kept.reshape(shape), axis=place)
    return unflatten(made)

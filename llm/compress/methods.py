# SPDX-License-Identifier: Apache-2.0
"""The ways to make a model smaller, by their names in configs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llm.compress import prune, quantize
from llm.compress.calibrate import Calibration
from llm.compress.names import KEPT, PRUNED, QUANTIZED, WHOLE
from llm.generate.language_model import LanguageModel
from llm.generate.loading import cast
from llm.models.config import TransformerConfig


class Original(NamedTuple):
    """What is made smaller.

    Attributes:
        lm: the model.
        axes: of `quantize.parameter_axes`.
        calibration: gives the statistics; only methods that need them ask.
    """

    lm: LanguageModel
    axes: Mapping[str, Sequence[str | None]]
    calibration: Callable[[], Calibration]


class Variant(NamedTuple):
    """A smaller model: its parameters, its configuration, and whether some are integers."""

    params: Any
    config: TransformerConfig
    quantized: bool = False


def to_dtype(original: Original, dtype: str) -> Variant:
    config = dataclasses.replace(original.lm.config, dtype=dtype)
    return Variant(cast(original.lm.params, dtype), config)


def to_nearest(
    original: Original,
    dtype: str,
    group: int = 0,
    include: str = QUANTIZED,
    exclude: str = KEPT,
) -> Variant:
    lm = original.lm
    made = quantize.quantize(lm.params, original.axes, dtype, group, include, exclude)
    return Variant(made, lm.config, True)


def gptq(
    original: Original,
    bits: int = 4,
    group: int = 32,
    damping: float = 0.01,
    include: str = QUANTIZED,
    exclude: str = KEPT,
) -> Variant:
    lm, moments = original.lm, original.calibration().moments
    made = quantize.gptq(lm.params, original.axes, moments, bits, group, damping, include, exclude)
    return Variant(made, lm.config, True)


def to_zeros(
    original: Original,
    measured: bool,
    sparsity: float = 0.5,
    pattern: str = "",
    include: str = PRUNED,
    exclude: str = WHOLE,
) -> Variant:
    lm, squares = original.lm, original.calibration().squares if measured else None
    made = prune.zero(lm.params, original.axes, squares, sparsity, pattern, include, exclude)
    return Variant(made, lm.config)


def fewer_layers(original: Original, layers: int) -> Variant:
    lm, influence = original.lm, original.calibration().influence
    return Variant(*prune.drop_layers(lm.params, original.axes, lm.config, influence, layers))


def fewer_hidden(original: Original, d_ff: int) -> Variant:
    lm, squares = original.lm, original.calibration().squares
    return Variant(*prune.drop_hidden(lm.params, original.axes, lm.config, squares, d_ff))


def _with(method: Callable[..., Variant], **fixed: Any) -> Callable[..., Variant]:
    return functools.update_wrapper(functools.partial(method, **fixed), method)


# method of a variant in a config -> (original, **options) -> Variant; the options' defaults are
# those above, their meaning is in `quantize` and `prune`
METHODS: dict[str, Callable[..., Variant]] = {
    **{dtype: _with(to_dtype, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")},
    **{dtype: _with(to_nearest, dtype=dtype) for dtype in quantize.METHODS},
    "gptq": gptq,
    "magnitude": _with(to_zeros, measured=False),
    "wanda": _with(to_zeros, measured=True),
    "layers": fewer_layers,
    "hidden": fewer_hidden,
}
CALIBRATED = ("gptq", "wanda", "layers", "hidden")  # those that read config.calibration
GIVEN = ("original", "dtype", "measured")  # what configs do not set

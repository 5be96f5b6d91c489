# SPDX-License-Identifier: Apache-2.0
"""Learning-rate schedules and optimizers.

Every optimizer is built at learning rate 1 and the training step multiplies its updates by the
schedule, so that the rate depends on the step alone (and is logged) and a skipped update does not
shift it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from llm.core import trees
from llm.errors import ConfigError

Schedule = Callable[[Any], Any]

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al., 2024)


class Optimizer(NamedTuple):
    """An optax transform at learning rate 1 with what the step applies around it."""

    transform: optax.GradientTransformation
    schedule: Schedule
    clip_norm: float


def _warmup(peak: float, warmup_steps: int, after: Schedule) -> Schedule:
    """Rise linearly from peak/warmup_steps at step 0 to `peak`, then follow `after`."""

    def rate(step: Any) -> Any:
        rising = peak * (step + 1) / max(warmup_steps, 1)
        return jnp.where(step < warmup_steps, rising, after(step - warmup_steps))

    return rate


def warmup_cosine(
    steps: int, *, peak: float, warmup_steps: int = 0, end_fraction: float = 0.1
) -> Schedule:
    """Fall from peak to `end_fraction` of it along half a cosine after a linear warm-up."""
    fall = optax.cosine_decay_schedule(peak, max(steps - warmup_steps, 1), alpha=end_fraction)
    return _warmup(peak, warmup_steps, fall)


def warmup_linear(
    steps: int, *, peak: float, warmup_steps: int = 0, end_fraction: float = 0.0
) -> Schedule:
    """Fall linearly from peak to `end_fraction` of it after a linear warm-up."""
    fall = optax.linear_schedule(peak, peak * end_fraction, max(steps - warmup_steps, 1))
    return _warmup(peak, warmup_steps, fall)


def warmup_stable_decay(
    steps: int,
    *,
    peak: float,
    warmup_steps: int = 0,
    decay_fraction: float = 0.2,
    end_fraction: float = 0.0,
) -> Schedule:
    """Hold the peak, then fall linearly over the last `decay_fraction` of the steps (WSD)."""
    decay = max(int(steps * decay_fraction), 1)
    start = max(steps - warmup_steps - decay, 0)
    fall = optax.linear_schedule(peak, peak * end_fraction, decay, transition_begin=start)
    return _warmup(peak, warmup_steps, fall)


def rsqrt(steps: int, *, peak: float, warmup_steps: int = 1000) -> Schedule:
    """Fall as sqrt(warmup_steps / step) after a linear warm-up (T5; `steps` does not matter)."""
    del steps
    warm = max(warmup_steps, 1)
    return _warmup(peak, warm, lambda step: peak * jnp.sqrt(warm / jnp.maximum(step + warm, 1)))


def constant(steps: int, *, peak: float, warmup_steps: int = 0) -> Schedule:
    """Hold the peak after a linear warm-up."""
    del steps
    return _warmup(peak, warmup_steps, lambda step: peak)


class Parts(NamedTuple):
    """What an optimizer may need to know of the trainable parameters: trees like them."""

    axes: dict[str, tuple[str | None, ...]]  # name -> logical axes
    decay: Callable[[Any], Any]  # params -> tree of booleans: weight decay applies


def _matrix_axes(axes: tuple[str | None, ...]) -> tuple[list[int], list[int]] | None:
    """Split a weight's dimensions into inputs and outputs; None if it is no hidden matrix.

    Layer and expert dimensions only stack matrices. Embeddings and the LM head are no hidden
    matrices (Muon's authors leave them to Adam).
    """
    dims = [i for i, axis in enumerate(axes) if axis not in ("layers", "expert", "stage")]
    names = [axes[i] for i in dims]
    if len(dims) < 2 or "vocab" in names or "embed" not in (names[0], names[-1]):
        return None
    return (dims[:1], dims[1:]) if names[0] == "embed" else (dims[:-1], dims[-1:])


def adamw(
    parts: Parts, *, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.1
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay (Loshchilov & Hutter, 2019)."""
    return optax.adamw(1.0, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=parts.decay)


def lion(
    parts: Parts, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 1.0
) -> optax.GradientTransformation:
    """Lion: the sign of an interpolated momentum (Chen et al., 2023)."""
    return optax.lion(1.0, b1=b1, b2=b2, weight_decay=weight_decay, mask=parts.decay)


def adafactor(
    parts: Parts, *, decay_rate: float = 0.8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adafactor: factored second moments, relative step sizes (Shazeer & Stern, 2018)."""
    return optax.adafactor(
        1.0,
        decay_rate=decay_rate,
        weight_decay_rate=weight_decay or None,
        weight_decay_mask=parts.decay,
    )


def sgd(parts: Parts, *, momentum: float = 0.0) -> optax.GradientTransformation:
    """Plain gradient descent, with momentum if asked."""
    del parts
    return optax.sgd(1.0, momentum=momentum or None)


def muon(
    parts: Parts,
    *,
    beta: float = 0.95,
    ns_steps: int = 5,
    weight_decay: float = 0.0,
    adam_scale: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.95,
) -> optax.GradientTransformation:
    """Muon on hidden matrices, AdamW on the rest (Jordan et al., 2024).

    Args:
        parts: axes tell the inputs and outputs of each matrix.
        beta: momentum.
        ns_steps: Newton–Schulz iterations.
        weight_decay: decoupled decay for both kinds.
        adam_scale: AdamW's learning rate as a fraction of Muon's.
        b1: AdamW's first decay.
        b2: AdamW's second decay.
    """

    def dimensions(params: Any) -> Any:
        def of(name: str, leaf: Any) -> Any:
            del leaf
            split = _matrix_axes(parts.axes[name])
            if split is None:
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(split[0]), tuple(split[1]))

        return trees.map_named(of, params)

    return optax.contrib.muon(
        1.0,
        # One triple per iteration makes optax loop over them: unrolled, they take long to compile.
        ns_coeffs=(_NEWTON_SCHULZ,) * ns_steps,
        ns_steps=ns_steps,
        beta=beta,
        weight_decay=weight_decay,
        weight_decay_mask=parts.decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=adam_scale,
        muon_weight_dimension_numbers=dimensions,
    )


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "warmup_cosine": warmup_cosine,
    "warmup_linear": warmup_linear,
    "wsd": warmup_stable_decay,
    "rsqrt": rsqrt,
    "constant": constant,
}

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
    "sgd": sgd,
}


def make_parts(axes: dict[str, tuple[str | None, ...]], no_decay: str = "") -> Parts:
    """Collect what optimizers need: decay applies to matrices and embeddings, not to vectors.

    Args:
        axes: parameter name -> logical axes.
        no_decay: regular expression of further names without decay.
    """
    stacking = ("layers", "expert", "stage")

    def decays(name: str, leaf: Any) -> bool:
        del leaf
        vector = sum(axis not in stacking for axis in axes[name]) < 2
        return not vector and not (no_decay and re.search(no_decay, name))

    return Parts(axes, lambda params: trees.map_named(decays, params))


def with_scales(
    transform: optax.GradientTransformation, scales: Sequence[tuple[str, float]]
) -> optax.GradientTransformation:
    """Multiply the updates of parameters whose name matches a pattern (per-group learning rates).

    Raises:
        ConfigError: a pattern is no regular expression.
    """
    if not scales:
        return transform
    try:
        compiled = [(re.compile(pattern), factor) for pattern, factor in scales]
    except re.error as error:
        raise ConfigError(f"optimizer.scales: {error.pattern!r} is no pattern: {error}.") from error

    def scale(updates: Any, params: Any = None) -> Any:
        del params

        def one(name: str, update: jax.Array) -> jax.Array:
            for pattern, factor in compiled:
                if pattern.search(name):
                    return update * factor
            return update

        return trees.map_named(one, updates)

    return optax.chain(transform, optax.stateless(scale))

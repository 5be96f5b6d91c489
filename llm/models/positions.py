# SPDX-License-Identifier: Apache-2.0
"""Position encodings: rotary with its scalings, sinusoidal, ALiBi and T5's relative buckets."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from llm.models.config import TransformerConfig

Array = jax.Array


def _linear(inverse: np.ndarray, c: TransformerConfig) -> np.ndarray:
    return inverse / c.rope_factor


def _ntk(inverse: np.ndarray, c: TransformerConfig) -> np.ndarray:
    # Raise the base so that the slowest frequency is stretched by exactly `factor`.
    rotated = 2 * len(inverse)
    base = c.rope_theta * c.rope_factor ** (rotated / (rotated - 2))
    return base ** (-np.arange(0, rotated, 2) / rotated)


def _yarn(inverse: np.ndarray, c: TransformerConfig) -> np.ndarray:
    # arXiv:2309.00071 §3.2: interpolate slow frequencies, keep fast ones, ramp in between.
    rotated = 2 * len(inverse)

    def dimension(rotations: float) -> float:
        full_turns = c.rope_original_length / (rotations * 2 * math.pi)
        return rotated * math.log(full_turns) / (2 * math.log(c.rope_theta))

    low = max(math.floor(dimension(c.rope_beta_fast)), 0)
    high = min(math.ceil(dimension(c.rope_beta_slow)), rotated - 1)
    span = max(high - low, 0.001)
    ramp = np.clip((np.arange(len(inverse)) - low) / span, 0, 1)
    return inverse / c.rope_factor * ramp + inverse * (1 - ramp)


def _llama3(inverse: np.ndarray, c: TransformerConfig) -> np.ndarray:
    # Llama 3.1 reference: as `linear` for long wavelengths, unchanged for short, blended between.
    turns = c.rope_original_length * inverse / (2 * np.pi)  # full turns in the original length
    blend = (turns - c.rope_low_freq_factor) / (c.rope_high_freq_factor - c.rope_low_freq_factor)
    blend = np.clip(blend, 0, 1)
    return (1 - blend) * inverse / c.rope_factor + blend * inverse


# config.rope_scaling -> new inverse frequencies from the default ones
SCALINGS: dict[str, Callable[[np.ndarray, TransformerConfig], np.ndarray]] = {
    "none": lambda inverse, c: inverse,
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
    "llama3": _llama3,
}


def rope_frequencies(config: TransformerConfig, local: bool = False) -> tuple[np.ndarray, float]:
    """Return inverse frequencies [R/2] (radians per position) and the factor on cos and sin.

    Local layers with their own base are not scaled: their window is short.
    """
    own_base = local and config.rope_local_theta > 0
    theta = config.rope_local_theta if own_base else config.rope_theta
    rotated = int(config.head_dim * config.rope_partial)
    inverse = theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if own_base:
        return inverse, 1.0
    factor = 1.0
    if config.rope_scaling == "yarn":
        factor = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1.0
    return SCALINGS[config.rope_scaling](inverse, config), factor


def rope_tables(  # [B, T] -> 2 x [B, T, R/2] float32
    config: TransformerConfig, positions: Array, local: bool = False
) -> tuple[Array, Array]:
    """Return cosines and sines of every rotation angle."""
    inverse, factor = rope_frequencies(config, local)
    # float32 angles: bfloat16 rounds position 257 to 256.
    angles = (
        positions.astype(jnp.float32)[:, :, None] * jnp.asarray(inverse, jnp.float32)[None, None]
    )
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:  # [B, T, N, H], 2 x [B, T, R/2]
    """Rotate the first R dimensions of each head; dimension i pairs with i + R/2."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half : 2 * half].astype(jnp.float32)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    turned = jnp.concatenate(rotated, axis=-1).astype(x.dtype)
    if 2 * half == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


def sinusoidal(positions: Array, d_model: int) -> Array:  # [B, T] -> [B, T, D] float32
    """Return sines then cosines of geometric frequencies (arXiv:1706.03762 §3.5)."""
    half = d_model // 2
    inverse = 10_000.0 ** (-np.arange(half) / max(half - 1, 1))
    angles = (
        positions.astype(jnp.float32)[:, :, None] * jnp.asarray(inverse, jnp.float32)[None, None]
    )
    table = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(table, ((0, 0), (0, 0), (0, d_model - 2 * half)))


def alibi_slopes(n_heads: int) -> np.ndarray:
    """Return each head's slope (arXiv:2108.12409; other than powers of two as BLOOM does)."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(n_heads - power)]
    return np.array(slopes + extra, np.float32)


def alibi_bias(  # [B, T], [B, S] -> [B, N, T, S] float32
    n_heads: int, q_positions: Array, k_positions: Array
) -> Array:
    """Return the penalty growing linearly with distance."""
    distance = (q_positions[:, :, None] - k_positions[:, None, :]).astype(jnp.float32)
    slopes = jnp.asarray(alibi_slopes(n_heads))[None, :, None, None]
    return -slopes * jnp.abs(distance)[:, None]


def relative_buckets(
    relative: Array, n_buckets: int, max_distance: int, bidirectional: bool
) -> Array:
    """Map key position minus query position to T5's buckets: exact when near, log-spaced afar."""
    offset = jnp.zeros_like(relative)
    if bidirectional:
        n_buckets //= 2
        offset = jnp.where(relative > 0, n_buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = n_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
    far = exact + (ratio / math.log(max_distance / exact) * (n_buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, n_buckets - 1))


def relative_bias(  # [R, N], [B, T], [B, S] -> [B, N, T, S] float32
    table: Array,
    max_distance: int,
    bidirectional: bool,
    q_positions: Array,
    k_positions: Array,
) -> Array:
    """Look up T5's learned bias for every pair of positions (arXiv:1910.10683 §2.1)."""
    relative = k_positions[:, None, :] - q_positions[:, :, None]
    buckets = relative_buckets(relative, table.shape[0], max_distance, bidirectional)
    return jnp.moveaxis(jnp.take(table.astype(jnp.float32), buckets, axis=0), -1, 1)

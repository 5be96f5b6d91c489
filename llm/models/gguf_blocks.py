# SPDX-License-Identifier: Apache-2.0
"""GGUF's number formats: blocks of a few hundred bits that stand for 32 or 256 weights. No JAX.

Each format is two functions on arrays of whole blocks, uint8 [n, bytes per block] and float32
[n, weights per block]. Layouts: the ggml project's `ggml-common.h` and GGUF specification.
"""

from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

Bytes = np.ndarray  # uint8 [n, bytes per block]
Weights = np.ndarray  # float32 [n, weights per block]


class Format(NamedTuple):
    """One number format; `encode` is None where it is only read."""

    code: int
    weights: int  # per block
    bytes: int  # per block
    decode: Callable[[Bytes], Weights]
    encode: Callable[[Weights], Bytes] | None = None


def _half(blocks: Bytes, at: int) -> np.ndarray:
    """Read the float16 at a byte of every block: float32 [n, 1]."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _to_half(values: np.ndarray) -> Bytes:
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Split [n, 16] bytes into [n, 32] numbers: all low halves, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _pack_nibbles(numbers: np.ndarray) -> Bytes:
    half = numbers.shape[1] // 2
    return (numbers[:, :half] | numbers[:, half:] << 4).astype(np.uint8)


def _fifth_bits(blocks: Bytes, at: int) -> np.ndarray:
    """Return [n, 32] numbers 0 or 16 from the 32 bits at a byte of every block."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _plain(dtype: type) -> tuple[Callable[[Bytes], Weights], Callable[[Weights], Bytes]]:
    def decode(blocks: Bytes) -> Weights:
        return blocks.copy().view(dtype).astype(np.float32)

    def encode(weights: Weights) -> Bytes:
        return weights.astype(dtype).view(np.uint8)

    return decode, encode


def _decode_q8_0(blocks: Bytes) -> Weights:
    return _half(blocks, 0) * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


def _encode_q8_0(weights: Weights) -> Bytes:
    """Round as the reference does; weights that lie on a coarser grid get scales that hit it.

    A model that was read from 4 bits has 16 values a block: with the reference's scale, largest /
    127, they are all rounded a second time. Weights that were never rounded gain little from a
    search, so a sample decides.
    """
    scale = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    sample = slice(None, None, max(1, len(weights) // _SAMPLE))
    _, before, after = _search_q8_0(weights[sample], scale[sample])
    if after < _GAIN * before:
        parts = range(0, len(weights), _PART)
        scale = np.concatenate(
            [_search_q8_0(weights[i : i + _PART], scale[i : i + _PART])[0] for i in parts]
        )
    return np.concatenate([_to_half(scale), _numbers_q8_0(weights, scale).view(np.uint8)], axis=1)


_SAMPLE = 512  # blocks
_PART = 8192  # blocks searched at a time
_GAIN = 0.5  # share of the squared error below which the search is worth its time


def _numbers_q8_0(weights: Weights, scale: np.ndarray) -> np.ndarray:
    return _round_half_away(weights * _inverse(scale)).astype(np.int8)


def _search_q8_0(weights: Weights, scale: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Let the largest weight of a block be 127, 126, … 96 and keep what fits it best.

    Returns:
        The scales, and the sums of squared errors with the given ones and with these.
    """

    def errors(scale: np.ndarray) -> np.ndarray:
        stored = scale.astype(np.float16).astype(np.float32)
        return np.square(stored * _numbers_q8_0(weights, scale) - weights).sum(1, keepdims=True)

    best, least = scale, errors(scale)
    before = float(least.sum())
    for level in range(126, 95, -1):
        tried = scale * np.float32(127 / level)
        found = errors(tried)
        best, least = np.where(found < least, tried, best), np.minimum(found, least)
    return best, before, float(least.sum())


def _decode_q4_0(blocks: Bytes) -> Weights:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _encode_q4_0(weights: Weights) -> Bytes:
    # The scale is signed so that the weight of largest size gets the number 0, exactly -8 scales.
    largest = np.abs(weights).argmax(axis=1)[:, None]
    scale = np.take_along_axis(weights, largest, axis=1) / np.float32(-8)
    numbers = np.clip(np.trunc(weights * _inverse(scale) + np.float32(8.5)), 0, 15)
    return np.concatenate([_to_half(scale), _pack_nibbles(numbers.astype(np.uint8))], axis=1)


def _decode_q4_1(blocks: Bytes) -> Weights:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _encode_q4_1(weights: Weights) -> Bytes:
    low = weights.min(axis=1, keepdims=True)
    scale = (weights.max(axis=1, keepdims=True) - low) / np.float32(15)
    numbers = np.clip(np.trunc((weights - low) * _inverse(scale) + np.float32(0.5)), 0, 15)
    packed = _pack_nibbles(numbers.astype(np.uint8))
    return np.concatenate([_to_half(scale), _to_half(low), packed], axis=1)


def _decode_q5_0(blocks: Bytes) -> Weights:
    numbers = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (numbers.astype(np.float32) - 16)


def _decode_q5_1(blocks: Bytes) -> Weights:
    numbers = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * numbers.astype(np.float32) + _half(blocks, 2)


def _six_bit_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack the 12 bytes of a K-block into 8 scales and 8 minima of six bits each."""
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, rest >> 4 | (second >> 6) << 4], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _scale_k(blocks: Bytes, numbers: np.ndarray) -> Weights:
    """Apply a K-block's scales and minima to its numbers [n, 8, 32]."""
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    step, floor = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    weights = step[:, :, None] * numbers.astype(np.float32) - floor[:, :, None]
    return weights.reshape(-1, 256)


def _k_nibbles(packed: np.ndarray) -> np.ndarray:
    """Split [n, 128] bytes into [n, 8, 32]: each 32 bytes hold two groups, low halves first."""
    quarters = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([quarters & 15, quarters >> 4], axis=2).reshape(-1, 8, 32)


def _decode_q4_k(blocks: Bytes) -> Weights:
    return _scale_k(blocks, _k_nibbles(blocks[:, 16:144]))


def _decode_q5_k(blocks: Bytes) -> Weights:
    high = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None] & 1
    return _scale_k(blocks, _k_nibbles(blocks[:, 48:176]) | high << 4)


def _decode_q6_k(blocks: Bytes) -> Weights:
    # Two halves of 128 weights: 64 bytes of low nibbles, 32 bytes of two high bits each.
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    numbers = (low | high << 4).astype(np.float32) - 32
    scales = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    weights = numbers.reshape(-1, 16, 16) * (_half(blocks, 208) * scales)[:, :, None]
    return weights.reshape(-1, 256)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """Return 1 / scale, and 0 where it is 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _round_half_away(x: np.ndarray) -> np.ndarray:
    return np.copysign(np.floor(np.abs(x) + np.float32(0.5)), x)


FORMATS: dict[str, Format] = {
    "F32": Format(0, 1, 4, *_plain(np.float32)),
    "F16": Format(1, 1, 2, *_plain(np.float16)),
    "BF16": Format(30, 1, 2, *_plain(ml_dtypes.bfloat16)),
    "Q4_0": Format(2, 32, 18, _decode_q4_0, _encode_q4_0),
    "Q4_1": Format(3, 32, 20, _decode_q4_1, _encode_q4_1),
    "Q5_0": Format(6, 32, 22, _decode_q5_0),
    "Q5_1": Format(7, 32, 24, _decode_q5_1),
    "Q8_0": Format(8, 32, 34, _decode_q8_0, _encode_q8_0),
    "Q4_K": Format(12, 256, 144, _decode_q4_k),
    "Q5_K": Format(13, 256, 176, _decode_q5_k),
    "Q6_K": Format(14, 256, 210, _decode_q6_k),
}
NAMES: dict[int, str] = {form.code: name for name, form in FORMATS.items()}
WRITABLE = tuple(name for name, form in FORMATS.items() if form.encode is not None)


def decode(name: str, data: np.ndarray) -> np.ndarray:
    """Turn the bytes of whole blocks (uint8 [n]) into float32 weights [m]."""
    form = FORMATS[name]
    with np.errstate(invalid="ignore", over="ignore"):  # of damaged scales; the reader checks
        return form.decode(data.reshape(-1, form.bytes)).reshape(-1)


def encode(name: str, weights: np.ndarray) -> bytes:
    """Turn float32 weights, a multiple of a block's, into bytes."""
    form = FORMATS[name]
    assert form.encode is not None
    blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, form.weights)
    return form.encode(blocks).tobytes()

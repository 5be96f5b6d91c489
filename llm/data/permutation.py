# SPDX-License-Identifier: Apache-2.0
"""A seeded shuffle of 0..n-1 as a function: any entry can be computed alone, in O(1) memory."""

import hashlib
from typing import Any

import numpy as np

ROUNDS = 8


def key(*parts: Any) -> np.ndarray:
    """Return round keys [ROUNDS] derived from the parts; equal parts give equal keys."""
    text = "\0".join(map(str, parts)).encode("utf-8")
    digest = hashlib.blake2b(text, digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


def permute(indices: Any, size: int, round_keys: np.ndarray) -> np.ndarray:
    """Map indices through a seeded bijection of 0..size-1.

    A Feistel network permutes the next power of two; values that land outside the range walk on
    along their cycle until they are inside (Black and Rogaway, 2002).

    Args:
        indices: integers in 0..size-1, any shape.
        size: how many there are.
        round_keys: from `key`.

    Returns:
        int64 array of the same shape.
    """
    values = np.asarray(indices, np.int64)
    if size < 2:
        return values.copy()
    result = _feistel(values.astype(np.uint64), size, round_keys)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], size, round_keys)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(values: np.ndarray, size: int, round_keys: np.ndarray) -> np.ndarray:
    """Permute 0..2^bits-1 with 2^bits the power of two at or above the size (at least 4)."""
    bits = max(2, (size - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for number, round_key in enumerate(round_keys):
        if number % 2:
            low = low ^ (_mix(high, round_key) & low_mask)
        else:
            high = high ^ (_mix(low, round_key) & high_mask)
    return (high << low_bits) | low


def _mix(values: np.ndarray, round_key: np.uint64) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64; products wrap)."""
    mixed = values ^ round_key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

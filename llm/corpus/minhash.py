# SPDX-License-Identifier: Apache-2.0
"""Near-duplicate signatures: word 5-gram shingles and MinHash bands, in batched NumPy.

Broder 1997; 14 bands of 8 rows as in FineWeb: documents of Jaccard similarity s share a band
with probability 1 - (1 - s^8)^14, one half near s = 0.69.
"""

from typing import NamedTuple

import numpy as np

from llm.text.views import ROLL, View, Words, mix

SEED = 0x5EED
BITS = np.uint64(48)  # of a shingle's hash; the 16 bits above number a batch's documents
MOST = 1 << 16  # documents of a batch


class Signatures(NamedTuple):
    """Signatures of n documents: bands uint64 [n, b]; shingles uint64 with offsets [n+1]."""

    bands: np.ndarray
    shingles: np.ndarray
    offsets: np.ndarray


def sign(batch_views: list[View], *, bands: int = 14, rows: int = 8, n_gram: int = 5) -> Signatures:
    """Compute the MinHash bands and the distinct shingles of a batch.

    A document with fewer words than `n_gram` has one shingle, made of all its words.

    Args:
        batch_views: at most `MOST`.
        bands, rows: hash functions are `bands * rows`.
        n_gram: words per shingle.
    """
    count = len(batch_views)
    if count > MOST:
        raise ValueError(f"{count} documents in a batch; at most {MOST} are signed at once")
    if not count:
        return Signatures(
            np.zeros((0, bands), np.uint64), np.zeros(0, np.uint64), np.zeros(1, np.int64)
        )
    shingles, owner = _shingles(Words(batch_views), n_gram)
    # One sort of plain numbers parts the documents and orders each one's shingles.
    keys = np.sort((owner.astype(np.uint64) << BITS) | (shingles >> (np.uint64(64) - BITS)))
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    keys = keys[first]
    counts = np.bincount((keys >> BITS).astype(np.int64), minlength=count)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    shingles = keys & ((np.uint64(1) << BITS) - np.uint64(1))
    return Signatures(band_hashes(shingles, offsets, bands, rows), shingles, offsets)


def _shingles(words: Words, n_gram: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `n_gram` words (symbols skipped); return hashes and their documents."""
    hashed = words.get("shingle")
    real = hashed != 0
    hashed, owner = hashed[real], words.owner[real]
    counts = np.bincount(owner, minlength=len(words.counts))
    gram = hashed.copy()
    for k in range(1, n_gram):
        gram[: len(gram) - k] = gram[: len(gram) - k] * ROLL + hashed[k:]
    ends = np.cumsum(counts)[owner]
    whole = np.arange(len(gram)) + n_gram <= ends
    short = np.flatnonzero(counts < n_gram)
    sums = np.zeros(len(counts), np.uint64)
    np.add.at(sums, owner, mix(hashed + (np.arange(len(owner)) - ends).astype(np.uint64)))
    shingles = np.concatenate([mix(gram[whole]), mix(sums[short])])
    return shingles, np.concatenate([owner[whole], short])


def band_hashes(shingles: np.ndarray, offsets: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Take the minimum of each hash function per document and hash rows into bands, [n, b]."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    factors = generator.integers(0, 2**32, bands * rows, dtype=np.uint32) | np.uint32(1)
    shifts = generator.integers(0, 2**32, bands * rows, dtype=np.uint32)
    low = (shingles >> (BITS - np.uint64(32))).astype(np.uint32)
    starts = offsets[:-1]
    smallest = np.empty((bands * rows, len(starts)), np.uint32)
    work = np.empty_like(low)
    for number in range(bands * rows):
        np.multiply(low, factors[number], out=work)
        np.add(work, shifts[number], out=work)
        np.minimum.reduceat(work, starts, out=smallest[number])
    by_band = smallest.reshape(bands, rows, len(starts))
    total = np.repeat(np.arange(bands, dtype=np.uint64)[:, None], len(starts), axis=1)
    for row in range(rows):
        total = mix(total * ROLL + by_band[:, row])
    return np.ascontiguousarray(total.T)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Return the Jaccard similarity of two sorted sets of shingles."""
    if not len(left) and not len(right):
        return 1.0
    both = np.intersect1d(left, right, assume_unique=True).size
    return both / (len(left) + len(right) - both)

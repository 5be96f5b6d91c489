# SPDX-License-Identifier: Apache-2.0
"""Group documents that share a band, a text or a module, with a union-find in arrays."""

from collections.abc import Callable

import numpy as np


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Label connected components by their smallest member.

    Args:
        count: number of nodes.
        left, right: ends of the edges, int [m].

    Returns:
        label [count]: the smallest node of each node's component.
    """
    label = np.arange(count)
    while True:
        before = label
        smaller = np.minimum(label[left], label[right])
        label = label.copy()
        np.minimum.at(label, left, smaller)
        np.minimum.at(label, right, smaller)
        # Hooking roots as well as leaves makes the number of rounds logarithmic.
        np.minimum.at(label, before[left], smaller)
        np.minimum.at(label, before[right], smaller)
        while not np.array_equal(shorter := label[label], label):
            label = shorter
        if np.array_equal(label, before):
            return label


def equal_edges(keys: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join every node to the best-ranked node with the same key.

    Args:
        keys: one key per node, [n].
        rank: position of each node in the order of preference, [n].
    """
    order = np.lexsort((rank, keys))
    ordered = keys[order]
    new = np.ones(len(order), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    heads = order[np.flatnonzero(new)][np.cumsum(new) - 1] if len(order) else order
    away = heads != order
    return heads[away], order[away]


def band_edges(bands: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct candidate pairs (better ranked, other) over all bands."""
    count = len(bands)
    pairs = np.zeros(0, np.int64)
    for band in range(bands.shape[1]):
        left, right = equal_edges(bands[:, band], rank)
        pairs = np.union1d(pairs, left * count + right)
    return pairs // max(count, 1), pairs % max(count, 1)


def verified(
    left: np.ndarray,
    right: np.ndarray,
    similarity: Callable[[int, int], float],
    threshold: float,
) -> np.ndarray:
    """Tell which candidate pairs reach the threshold, bool [m]."""
    return np.fromiter(
        (similarity(int(a), int(b)) >= threshold for a, b in zip(left, right, strict=True)),
        bool,
        len(left),
    )

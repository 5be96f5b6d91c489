# SPDX-License-Identifier: Apache-2.0
"""Group documents that share a band, a text or a module, with a union-find in arrays."""

from collections.abc import Callable

import numpy as np

ROUNDS = 8  # heads that the members of one bucket are compared with, one after the other

Similar = Callable[[np.ndarray, np.ndarray], np.ndarray]


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


def join(label: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Add edges to a forest in place, so that edges can come in any number of portions.

    Args:
        label: a smaller or the same node of each node's component; `np.arange` at first.
        left, right: ends of the edges.
    """
    left, right = roots(label, left), roots(label, right)
    apart = left != right
    nodes, ends = np.unique(np.concatenate([left[apart], right[apart]]), return_inverse=True)
    half = len(ends) // 2
    label[nodes] = nodes[components(len(nodes), ends[:half], ends[half:])]


def roots(label: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Return the smallest node of the component of each of `nodes`."""
    found = label[nodes]
    while not np.array_equal(above := label[found], found):
        found = above
    return found


def buckets(keys: np.ndarray, *ties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes whose key another one has, bucket after bucket, and each one's bucket.

    Args:
        keys: one per node, [n].
        ties: order within a bucket, the most important first, each [n].
    """
    order = np.argsort(keys)
    again = keys[order][1:] == keys[order][:-1]
    several = np.zeros(len(keys), bool)
    several[order[1:][again]] = several[order[:-1][again]] = True
    members = np.flatnonzero(several)
    members = members[np.lexsort((*(tie[members] for tie in reversed(ties)), keys[members]))]
    return members, np.cumsum(_first(keys[members])) - 1


def heads(bucket: np.ndarray) -> np.ndarray:
    """Return for each member the place of its bucket's first member; buckets lie together."""
    new = _first(bucket)
    return np.flatnonzero(new)[np.cumsum(new) - 1]


def equal_edges(keys: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join every node to the best-ranked node with the same key.

    Args:
        keys: one key per node, [n].
        rank: position of each node in the order of preference, [n].
    """
    members, bucket = buckets(keys, rank)
    head = heads(bucket)
    away = head != np.arange(len(members))
    return members[head[away]], members[away]


def compare(
    members: np.ndarray, bucket: np.ndarray, similar: Similar
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare the members of each bucket with its head, and the rest again with a head of its own.

    Args:
        members, bucket: as from `buckets`.
        similar: (left [m], right [m]) -> bool [m].

    Returns:
        left, right, and whether they are similar, for every pair that was compared.
    """
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(ROUNDS):
        if not len(members):
            break
        head = heads(bucket)
        away = head != np.arange(len(members))
        left, right = members[head[away]], members[away]
        same = similar(left, right)
        pairs.append((left, right, same))
        members, bucket = right[~same], bucket[away][~same]
    empty = np.zeros(0, np.int64)
    parts = list(zip(*pairs, strict=True)) or [(empty,), (empty,), (empty.astype(bool),)]
    left, right, same = (np.concatenate(part) for part in parts)
    return left, right, same


def _first(values: np.ndarray) -> np.ndarray:
    """Tell which values differ from the one before."""
    new = np.ones(len(values), bool)
    new[1:] = values[1:] != values[:-1]
    return new

# SPDX-License-Identifier: Apache-2.0
"""Decide over the whole corpus: which copies go, which split each document joins."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.corpus import cluster, minhash
from llm.corpus.clean import ARRAYS, SHINGLES
from llm.text.views import mix

KEPT, EXACT, NEAR, PLANTED = 0, 1, 2, 3
SPLITS = ("train", "validation")


class Corpus(NamedTuple):
    """Arrays over all documents in shard order, and shingles memory-mapped per shard."""

    columns: dict[str, np.ndarray]
    starts: np.ndarray  # first document of each shard, [shards + 1]
    shingles: list[np.ndarray]

    def shingles_of(self, document: int) -> np.ndarray:
        """Return one document's sorted distinct shingles."""
        shard = int(np.searchsorted(self.starts, document, side="right")) - 1
        low, high = self.columns["low"][document], self.columns["high"][document]
        return self.shingles[shard][low:high]


class Selection(NamedTuple):
    """Fate of each document: status (KEPT, EXACT, NEAR, PLANTED), keeper, split, component."""

    status: np.ndarray
    keeper: np.ndarray
    split: np.ndarray
    component: np.ndarray
    stats: dict[str, Any]


def load(folder: Path, shards: int) -> Corpus:
    """Load the arrays that the cleaning wrote."""
    parts: list[dict[str, np.ndarray]] = []
    shingles: list[np.ndarray] = []
    for index in range(shards):
        with np.load(folder / ARRAYS.format(index)) as stored:
            part = {name: stored[name] for name in stored.files}
        offsets = part.pop("offsets", None)
        if offsets is not None:
            part["low"], part["high"] = offsets[:-1], offsets[1:]
            shingles.append(np.load(folder / SHINGLES.format(index), mmap_mode="r"))
        else:
            part["low"] = part["high"] = np.zeros(len(part["size"]), np.int64)
            shingles.append(np.zeros(0, np.uint64))
        parts.append(part)
    names = set.union(*(set(part) for part in parts))
    filled = [part for part in parts if len(part["size"])] or parts[:1]
    columns = {name: np.concatenate([part[name] for part in filled]) for name in names}
    starts = np.concatenate([[0], np.cumsum([len(part["size"]) for part in parts])])
    return Corpus(columns, starts, shingles)


def select(
    corpus: Corpus,
    *,
    exact: bool = True,
    near: str = "drop",
    threshold: float = 0.7,
    keep: str = "longest",
    validation: float = 0.02,
    by_group: bool = True,
    seed: int = 0,
) -> Selection:
    """Choose the documents to keep and their splits.

    Args:
        corpus: arrays of `load`.
        exact: drop documents whose normalised text appeared before.
        near: "drop" near copies of Jaccard similarity >= threshold, "group" them into one
            split only, or "off".
        threshold: exact Jaccard similarity of word 5-grams that makes a candidate a copy.
        keep: the "longest", the "best" (by meta's "quality", then length) or the "first" of a
            cluster stays. Planted documents never win.
        validation: share of bytes for the validation split.
        by_group: documents of one group (for pydocs: one module) join the same split.
        seed: orders the components for the split.
    """
    columns = corpus.columns
    count = len(columns["size"])
    planted = columns["planted"]
    rank = _rank(columns, keep)
    status = np.zeros(count, np.int8)
    keeper = np.arange(count)
    edges: list[tuple[np.ndarray, np.ndarray]] = []
    stats: dict[str, Any] = {"candidates": 0, "verified": 0}
    if exact:
        key = columns["exact"][:, 0] ^ mix(columns["exact"][:, 1].copy())
        left, right = cluster.equal_edges(key, rank)
        status[right], keeper[right] = EXACT, left
        edges.append((left, right))
    if near != "off" and count:
        left, right = cluster.band_edges(columns["bands"], rank)
        alive = (status[left] == KEPT) & (status[right] == KEPT)
        edges.append((left, right))
        left, right = left[alive], right[alive]
        same = cluster.verified(left, right, _similarity(corpus), threshold)
        stats = {"candidates": len(left), "verified": int(same.sum())}
        if near == "drop":
            _drop_near(status, keeper, rank, left[same], right[same])
    if by_group:
        edges.append(cluster.equal_edges(columns["group"], rank))
    ends = [np.concatenate(side) for side in zip(*edges, strict=True)] if edges else []
    component = cluster.components(count, *ends) if edges else np.arange(count)
    status[planted & (status == KEPT)] = PLANTED
    split = _split(columns, component, status == KEPT, validation, seed)
    return Selection(status, keeper, split, component, stats)


def _rank(columns: dict[str, np.ndarray], keep: str) -> np.ndarray:
    """Rank documents: real before planted, then by the policy, then by order."""
    order = np.arange(len(columns["size"]))
    size = order if keep == "first" else -columns["size"]
    score = -columns["score"] if keep == "best" else np.zeros(len(order))
    by_preference = np.lexsort((order, size, score, columns["planted"]))
    rank = np.empty_like(order)
    rank[by_preference] = order
    return rank


def _similarity(corpus: Corpus) -> Any:
    def similarity(left: int, right: int) -> float:
        return minhash.jaccard(corpus.shingles_of(left), corpus.shingles_of(right))

    return similarity


def _drop_near(
    status: np.ndarray, keeper: np.ndarray, rank: np.ndarray, left: np.ndarray, right: np.ndarray
) -> None:
    """Keep the best-ranked document of each verified cluster."""
    label = cluster.components(len(status), left, right)
    best = np.full(len(status), len(status), np.int64)
    np.minimum.at(best, label, rank)
    by_rank = np.empty(len(status), np.int64)
    by_rank[rank] = np.arange(len(status))
    winner = by_rank[best[label]]
    lost = (winner != np.arange(len(status))) & (status == KEPT)
    status[lost], keeper[lost] = NEAR, winner[lost]


def _split(
    columns: dict[str, np.ndarray],
    component: np.ndarray,
    kept: np.ndarray,
    validation: float,
    seed: int,
) -> np.ndarray:
    """Fill the validation split with whole components, in a seeded order, up to its share.

    A component larger than what is left stays in training. Returns indices into `SPLITS`.
    """
    split = np.zeros(len(component), np.int8)
    sizes = np.bincount(component[kept], columns["size"][kept], minlength=len(component))
    members = np.flatnonzero(sizes)
    if validation <= 0 or len(members) < 2:
        return split
    # A component's place depends on its smallest name, not on where its documents lie.
    smallest = np.full(len(component), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, component, columns["name"])
    order = members[np.argsort(mix(smallest[members] ^ np.uint64(seed)), kind="stable")]
    room = validation * sizes.sum()
    chosen = []
    for one in order:
        if sizes[one] <= room:
            chosen.append(one)
            room -= sizes[one]
    if not chosen:
        chosen = [members[np.argmin(sizes[members])]]
    split[np.isin(component, chosen)] = 1
    return split

# SPDX-License-Identifier: Apache-2.0
"""Decide over the whole corpus: which copies go, which split each document joins."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.corpus import bias, cluster, minhash, repeats, units
from llm.corpus.clean import ARRAYS, BANDS, SHINGLES, UNITS
from llm.corpus.stored import Stored
from llm.text.views import mix

# Fates. CUT lost so much to repeats that it goes; EARLIER belongs to a corpus made before; EXCESS
# goes for the balance of the others; ADDRESS has the address of another.
KEPT, EXACT, NEAR, PLANTED, CUT, EARLIER, EXCESS, ADDRESS = range(8)
SPLITS = ("train", "validation")
KEYS = 1 << 24  # band keys sorted in one pass: about 1 GiB
# What every document has, and stays in memory: about 60 bytes.
COLUMNS = ("exact", "url", "name", "group", "size", "score", "lean", "planted", "low", "high")


class Corpus(NamedTuple):
    """Small columns over all documents in shard order; what is large stays in the shards' files.

    Documents of earlier corpora follow those of this one, in shards of their own.
    """

    places: list[tuple[Path, int]]  # folder and number of each shard
    columns: dict[str, np.ndarray]
    starts: np.ndarray  # first document of each shard, [shards + 1]
    shingles: list[Stored | None]
    bands: list[Stored | None]  # of each shard, [b, documents]
    units: dict[str, list[units.Units]]
    own_shards: int
    earlier: np.ndarray  # bool [n]: documents that earlier corpora kept

    @property
    def documents(self) -> int:
        """Number of documents that are not of earlier corpora."""
        return int(self.starts[self.own_shards])

    def shingles_of(self, document: int) -> np.ndarray:
        """Return one document's sorted distinct shingles."""
        shard = int(np.searchsorted(self.starts, document, side="right")) - 1
        stored = self.shingles[shard]
        if stored is None:
            return np.zeros(0, np.uint64)
        return stored.rows(self.columns["low"][document], self.columns["high"][document])

    def jaccard(self, left: int, right: int) -> float:
        """Return the exact Jaccard similarity of two documents' shingles."""
        return minhash.jaccard(self.shingles_of(left), self.shingles_of(right))

    def keys(self, what: str, documents: np.ndarray) -> np.ndarray:
        """Return a key of each document's "exact" text, or its "url", equal for copies."""
        found = self.columns[what][documents]
        return found if what == "url" else found[:, 0] ^ mix(found[:, 1])

    def band(self, number: int, part: int = 0, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return keys and documents of one band, or of one part of its keys."""
        keys, documents = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for shard, stored in enumerate(self.bands):
            if stored is None:
                continue
            row = stored.rows(number, number + 1)[0]
            mine = np.flatnonzero(row % np.uint64(parts) == part)
            keys.append(row[mine])
            documents.append(mine + self.starts[shard])
        return np.concatenate(keys), np.concatenate(documents)


class Selection(NamedTuple):
    """Fate of each document of this corpus: status, keeper, split, component; runs that go."""

    status: np.ndarray
    keeper: np.ndarray  # may lie in an earlier corpus
    split: np.ndarray
    component: np.ndarray
    cuts: dict[str, repeats.Cuts]
    stats: dict[str, Any]


Portion = tuple[np.ndarray, np.ndarray, np.ndarray]  # left, right, whether they are near copies


class Search(NamedTuple):
    """How an engine finds copies among documents; the results of all engines are the same.

    equal: (corpus, rank, alive, "exact" or "url") -> (kept, its copy).
    near: (corpus, rank, alive, similar) -> portions of compared pairs.
    """

    equal: Callable[..., tuple[np.ndarray, np.ndarray]]
    near: Callable[..., Iterator[Portion]]


def load(folder: Path, shards: int, earlier: Sequence[tuple[Path, int, np.ndarray]] = ()) -> Corpus:
    """Open what the cleaning wrote.

    Args:
        folder: of the cleaned shards.
        shards: how many there are.
        earlier: folder, shards and kept documents (bool) of corpora to compare with.
    """
    places = [(folder, index) for index in range(shards)]
    places += [(old, index) for old, number, _ in earlier for index in range(number)]
    corpus = open_shards(places)
    count = int(corpus.starts[shards])
    old = np.concatenate([np.zeros(count, bool), *(kept for _, _, kept in earlier)])
    return corpus._replace(own_shards=shards, earlier=old)


def open_shards(places: Sequence[tuple[Path, int]]) -> Corpus:
    """Open shards as one corpus."""
    parts: list[dict[str, np.ndarray]] = []
    shingles: list[Stored | None] = []
    bands: list[Stored | None] = []
    runs: dict[str, list[units.Units]] = {}
    for place, index in places:
        with np.load(place / ARRAYS.format(index)) as stored:
            part = {name: stored[name] for name in stored.files}
        offsets = part.pop("offsets", None)
        if offsets is None:
            offsets = np.zeros(len(part["size"]) + 1, np.int64)
            shingles.append(None)
            bands.append(None)
        else:
            shingles.append(Stored(place / SHINGLES.format(index)))
            bands.append(Stored(place / BANDS.format(index)))
        part["low"], part["high"] = offsets[:-1], offsets[1:]
        for name in units.UNITS:
            if f"{name}_lengths" in part:
                whole = units.Units(
                    _open(place / UNITS.format(index, name)),
                    part[f"{name}_lengths"],
                    part[f"{name}_offsets"],
                )
                runs.setdefault(name, []).append(whole)
        parts.append(part)
    filled = [part for part in parts if len(part["size"])] or parts[:1]
    starts = np.cumsum([0, *(len(part["size"]) for part in parts)])
    # Parts give each column away as it is joined: all of them twice would be too much.
    columns = {name: np.concatenate([part.pop(name) for part in filled]) for name in COLUMNS}
    none = np.zeros(starts[-1], bool)
    return Corpus(list(places), columns, starts, shingles, bands, runs, len(parts), none)


def _open(place: Path) -> np.ndarray:
    """Map an array into memory; empty ones cannot be mapped."""
    array = np.load(place, mmap_mode="r")
    return array if array.size else np.zeros(array.shape, array.dtype)


def own(corpus: Corpus) -> Corpus:
    """Return a corpus without the earlier ones that it was compared with."""
    columns = {name: values[: corpus.documents] for name, values in corpus.columns.items()}
    return corpus._replace(columns=columns, starts=corpus.starts[: corpus.own_shards + 1])


def _equal(
    corpus: Corpus, rank: np.ndarray, alive: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    living = np.flatnonzero(alive)
    left, right = cluster.equal_edges(corpus.keys(what, living), rank[living])
    return living[left], living[right]


def _near(
    corpus: Corpus, rank: np.ndarray, alive: np.ndarray, similar: "Similar"
) -> Iterator[Portion]:
    """Compare documents that share a band, band by band."""
    parts = max(1, -(-len(rank) // KEYS))
    for band in range(max((len(stored) for stored in corpus.bands if stored), default=0)):
        for part in range(parts):
            keys, documents = corpus.band(band, part, parts)
            living = alive[documents]
            keys, documents = keys[living], documents[living]
            members, bucket = cluster.buckets(keys, rank[documents])
            yield cluster.compare(documents[members], bucket, similar)


LOCAL = Search(_equal, _near)


def select(
    corpus: Corpus,
    *,
    url: bool = False,
    exact: bool = True,
    near: str = "drop",
    threshold: float = 0.7,
    keep: str = "longest",
    repeats_of: Mapping[str, int] | None = None,
    min_run_chars: int = 0,
    min_left_chars: int = 0,
    balance: float = 0.0,
    validation: float = 0.02,
    by_group: bool = True,
    seed: int = 0,
    search: Search = LOCAL,
) -> Selection:
    """Choose the documents to keep and their splits.

    Args:
        corpus: arrays of `load`.
        url: drop documents that have the address of another.
        exact: drop documents whose normalised text appeared before.
        near: "drop" near copies of Jaccard similarity >= threshold, "group" them into one
            split only, or "off".
        threshold: exact Jaccard similarity of word 5-grams that makes a candidate a copy.
        keep: the "longest", the "best" (by meta's "quality", then length) or the "first" of a
            cluster stays; earlier corpora win, planted documents never do.
        repeats_of: unit -> how many of them make a run that stays only once; 0 leaves them.
        min_run_chars: shorter runs stay.
        min_left_chars: documents that lost runs and have fewer characters left go.
        balance: see `bias.excess`.
        validation: share of bytes for the validation split.
        by_group: documents of one group (for pydocs: one module) join the same split.
        seed: orders the components for the split.
        search: the engine's.
    """
    columns, count = corpus.columns, corpus.documents
    rank, fates = _rank(corpus, keep), _Fates(corpus)
    for wanted, what, fate in ((url, "url", ADDRESS), (exact, "exact", EXACT)):
        if wanted:
            _drop_equal(corpus, rank, fates, search, what, fate)
    stats: dict[str, Any] = {"candidates": 0, "verified": 0}
    if near != "off":
        stats = _find_near(corpus, rank, fates, search, threshold, near == "drop")
    if by_group:
        groups = cluster.equal_edges(columns["group"][:count], rank[:count])
        cluster.join(fates.component, *groups)
    cuts = {
        unit: repeats.find(
            corpus.units[unit],
            rank,
            fates.alive(),
            run,
            planted=columns["planted"],
            min_chars=min_run_chars,
        )
        for unit, run in (repeats_of or {}).items()
        if run
    }
    for unit, found in cuts.items():
        short = _left(corpus.units[unit], found, len(rank))[found.document] < min_left_chars
        gone = np.unique(found.document[short])
        fates.lose(gone, gone, CUT)
    status, keeper = fates.status[:count], fates.keeper[:count]
    component = cluster.roots(fates.component, fates.component[:count])
    status[columns["planted"][:count] & np.isin(status, (KEPT, CUT))] = PLANTED
    kept = np.flatnonzero(status == KEPT)
    name = columns["name"][kept]
    status[kept[bias.excess(columns["lean"][kept], name, balance, seed)]] = EXCESS
    stats["of_earlier"] = int((keeper >= count).sum())
    split = _split(own(corpus).columns, component, status == KEPT, validation, seed)
    return Selection(status, keeper, split, component, cuts, stats)


class _Fates:
    """What becomes of each document: its status, its keeper, and the component it belongs to."""

    def __init__(self, corpus: Corpus):
        count = corpus.documents
        self.status = np.where(corpus.earlier, EARLIER, KEPT).astype(np.int8)
        self.status[count:][~corpus.earlier[count:]] = EXACT  # dropped long ago
        self.keeper = np.arange(len(self.status))
        self.component = np.arange(len(self.status))

    def alive(self) -> np.ndarray:
        return (self.status == KEPT) | (self.status == EARLIER)

    def lose(self, lost: np.ndarray, winner: np.ndarray, fate: int) -> None:
        """Note the fate of documents that were kept so far; earlier corpora stay as they are."""
        still = self.status[lost] == KEPT
        self.status[lost[still]], self.keeper[lost[still]] = fate, winner[still]


def _drop_equal(
    corpus: Corpus, rank: np.ndarray, fates: _Fates, search: Search, what: str, fate: int
) -> None:
    real = ~corpus.columns["planted"]  # planted documents tie no others together
    alive = fates.alive()
    if what == "url":  # a planted copy has the address of its original
        alive &= real & (corpus.columns["url"] != 0)
    left, right = search.equal(corpus, rank, alive, what)
    fates.lose(right, left, fate)
    cluster.join(fates.component, left[real[right]], right[real[right]])


def _find_near(
    corpus: Corpus, rank: np.ndarray, fates: _Fates, search: Search, threshold: float, drop: bool
) -> dict[str, Any]:
    """Tie near copies together and, if wanted, drop all but one; return how many were compared."""
    real = ~corpus.columns["planted"]
    similar = Similar(corpus, threshold)
    label = np.arange(len(rank))
    for left, right, same in search.near(corpus, rank, fates.alive(), similar):
        true, fake = real[right], same & ~real[right]
        cluster.join(fates.component, left[true], right[true])
        cluster.join(label, left[true & same], right[true & same])
        fates.lose(right[fake], left[fake], NEAR)
    if drop:
        winner = _winners(label, rank)
        lost = np.flatnonzero(winner != np.arange(len(rank)))
        fates.lose(lost, winner[lost], NEAR)
    return similar.counts()


def _rank(corpus: Corpus, keep: str) -> np.ndarray:
    """Rank documents: earlier corpora, real before planted, then by the policy, then by order."""
    columns = corpus.columns
    order = np.arange(len(columns["size"]))
    size = order if keep == "first" else -columns["size"]
    score = -columns["score"] if keep == "best" else np.zeros(len(order))
    by_preference = np.lexsort((order, size, score, columns["planted"], ~corpus.earlier))
    rank = np.empty_like(order)
    rank[by_preference] = order
    return rank


class Similar:
    """Tell which pairs of documents reach an exact Jaccard similarity, and remember it."""

    def __init__(self, corpus: Corpus, threshold: float):
        self.corpus, self.threshold = corpus, threshold
        self.pairs = np.zeros(0, np.int64)  # sorted
        self.same = np.zeros(0, bool)

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        count = len(self.corpus.columns["size"])
        pairs = left * count + right
        a, b = np.divmod(np.setdiff1d(pairs, self.pairs), count)
        found = map(self.corpus.jaccard, a.tolist(), b.tolist())
        self.remember(a, b, np.fromiter(found, float, len(a)) >= self.threshold)
        return self.same[np.searchsorted(self.pairs, pairs)]

    def remember(self, left: np.ndarray, right: np.ndarray, same: np.ndarray) -> None:
        """Take in pairs that were not compared before, in ascending order."""
        pairs = left * len(self.corpus.columns["size"]) + right
        places = np.searchsorted(self.pairs, pairs)
        self.pairs = np.insert(self.pairs, places, pairs)
        self.same = np.insert(self.same, places, same)

    def counts(self) -> dict[str, Any]:
        """Return how many pairs were compared and how many were near copies."""
        return {"candidates": len(self.pairs), "verified": int(self.same.sum())}


def _winners(label: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return the best-ranked document of each document's cluster."""
    root = cluster.roots(label, label)
    best = np.full(len(rank), len(rank), np.int64)
    np.minimum.at(best, root, rank)
    by_rank = np.empty(len(rank), np.int64)
    by_rank[rank] = np.arange(len(rank))
    return by_rank[best[root]]


def _left(shards: Sequence[units.Units], cuts: repeats.Cuts, count: int) -> np.ndarray:
    """Return how many characters each document keeps, [n]."""
    lengths = np.concatenate([u.lengths for u in shards])
    sums = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    counts = np.concatenate([np.diff(u.offsets) for u in shards])
    places = np.concatenate([[0], np.cumsum(counts)])
    left = sums[places[1:]] - sums[places[:-1]]
    start = places[cuts.document]
    np.subtract.at(left, cuts.document, sums[start + cuts.end] - sums[start + cuts.first])
    return left


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
    np.minimum.at(smallest, component[kept], columns["name"][kept])
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

# SPDX-License-Identifier: Apache-2.0
"""Find runs of units that a corpus holds more than once, and choose which copies go.

A run of 50 words (Lee et al. 2022), of three sentences (C4), one line or one paragraph (CCNet): all
are windows of a fixed number of units. What a suffix array finds by sorting suffixes is found here
by sorting the hashes of the windows, and every match is then compared unit by unit. Hashes stay in
the shards' files; a pass looks at as many windows as fit into memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm.corpus import cluster
from llm.corpus.units import Units
from llm.text.views import ROLL, mix

WINDOWS = 1 << 24  # windows sorted in one pass: about 1 GiB
_FIRST, _COPY = 1, 2


class Cuts(NamedTuple):
    """Runs to take out, sorted: document, first unit, end (one past the last), each int64 [m]."""

    document: np.ndarray
    first: np.ndarray
    end: np.ndarray


def find(
    shards: Sequence[Units],
    rank: np.ndarray,
    alive: np.ndarray,
    run: int,
    *,
    planted: np.ndarray | None = None,
    min_chars: int = 0,
    windows: int = WINDOWS,
) -> Cuts:
    """Return the runs that can go because the same run comes earlier and stays.

    The first copy of every repeated window, by the documents' rank and then by place, stays whole;
    of the others, whatever is not part of such a first copy goes.

    Args:
        shards: units of the documents, in the order of `rank` and `alive`.
        rank: documents of lower rank keep their copy, int [n].
        alive: other documents are not looked at, bool [n].
        run: units of a window.
        planted: a copy in these documents is no reason to keep the first one whole, bool [n].
        min_chars: windows with fewer characters do not count.
        windows: how many to hold in memory.
    """
    layout = _layout(shards)
    marks = np.zeros(int(layout.units[-1]), np.uint8)
    parts = max(1, -(-len(marks) // windows))
    for part in range(parts):
        found = [
            _windows(units, alive[layout.documents[i] :], run, min_chars, part, parts)
            for i, units in enumerate(shards)
        ]
        keys = np.concatenate([keys for keys, _ in found])
        where = np.concatenate([w + layout.units[i] for i, (_, w) in enumerate(found)])
        first, copies = _matches(keys, where, rank[layout.owner(where)])
        same = _equal(shards, layout, first, copies, run)
        first, copies = first[same], copies[same]
        marks[copies] |= _COPY
        if planted is not None:
            first = first[~planted[layout.owner(copies)]]
        marks[first] |= _FIRST
    goes = _covered(marks & _COPY, run)
    goes &= ~_covered(marks & _FIRST, run)
    return _runs(goes, layout)


class _Layout(NamedTuple):
    """Where things lie when all shards are laid end to end."""

    units: np.ndarray  # first unit of each shard, [shards + 1]
    documents: np.ndarray  # first document of each shard, [shards + 1]
    places: np.ndarray  # first unit of each document, [n]

    def owner(self, place: np.ndarray) -> np.ndarray:
        """Return the document that holds each unit."""
        return np.searchsorted(self.places, place, side="right") - 1


def _layout(shards: Sequence[Units]) -> _Layout:
    offsets = [np.asarray(units.offsets, np.int64) for units in shards]
    units = np.cumsum([0, *(o[-1] for o in offsets)])
    documents = np.cumsum([0, *(len(o) - 1 for o in offsets)])
    places = [o[:-1] + start for o, start in zip(offsets, units[:-1], strict=True)]
    return _Layout(units, documents, np.concatenate([np.zeros(0, np.int64), *places]))


def _windows(
    units: Units, alive: np.ndarray, run: int, min_chars: int, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash and the place of a shard's windows that belong to one pass."""
    count = max(len(units.hashes) - run + 1, 0)
    hashes = np.asarray(units.hashes)
    keys = hashes[:count].copy()
    for k in range(1, run):
        keys *= ROLL
        keys += hashes[k : k + count]
    keys = mix(keys)
    offsets = np.asarray(units.offsets)
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[:count]
    good = np.arange(count) + run <= offsets[1:][owner]
    good &= alive[: len(offsets) - 1][owner]
    if min_chars:
        sums = np.concatenate([[0], np.cumsum(units.lengths, dtype=np.int64)])
        good &= sums[run : run + count] - sums[:count] >= min_chars
    if parts > 1:
        good &= keys % np.uint64(parts) == part
    where = np.flatnonzero(good)
    return keys[where], where


def _matches(
    keys: np.ndarray, where: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pair every window whose key came before, by rank and place, with the first that has it."""
    members, bucket = cluster.buckets(keys, rank, where)
    head = cluster.heads(bucket)
    away = head != np.arange(len(members))
    return where[members[head[away]]], where[members[away]]


def _equal(
    shards: Sequence[Units], layout: _Layout, left: np.ndarray, right: np.ndarray, run: int
) -> np.ndarray:
    """Compare windows unit by unit: equal hashes of windows are not yet equal runs."""
    same = np.ones(len(left), bool)
    for k in range(run):
        same &= _take(shards, layout, left + k) == _take(shards, layout, right + k)
    return same


def _take(shards: Sequence[Units], layout: _Layout, place: np.ndarray) -> np.ndarray:
    """Gather hashes of units from the shards that hold them."""
    result = np.empty(len(place), np.uint64)
    shard = np.searchsorted(layout.units, place, side="right") - 1
    for one in np.unique(shard).tolist():
        mine = shard == one
        result[mine] = shards[one].hashes[place[mine] - layout.units[one]]
    return result


def _covered(starts: np.ndarray, run: int) -> np.ndarray:
    """Tell which units lie in a window that starts at a marked one."""
    sums = np.cumsum(starts != 0, dtype=np.int64)
    sums[run:] -= sums[:-run].copy()
    return sums > 0


def _runs(goes: np.ndarray, layout: _Layout) -> Cuts:
    """Turn marked units into runs that do not cross documents."""
    begins = goes.copy()
    begins[1:] &= ~goes[:-1]
    heads = layout.places[layout.places < len(goes)]
    begins[heads] = goes[heads]
    ends = goes.copy()
    ends[:-1] &= ~goes[1:]
    ends[heads[heads > 0] - 1] = goes[heads[heads > 0] - 1]
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    document = layout.owner(first)
    place = layout.places[document]
    return Cuts(document, first - place, last + 1 - place)

# SPDX-License-Identifier: Apache-2.0
"""Measure how copies are found: recall and precision on planted and natural ones, speed, memory.

Command:  python benchmarks/copies.py [speed | planted | licences | many] [--documents N]

"many" clusters N synthetic signatures (10 million by default; 3 GB of disk in a temporary folder)
in a process of its own and prints the most memory that it held.
"""

import argparse
import importlib.metadata
import re
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from llm.corpus import cluster, minhash, pydocs, repeats, select, stored, units
from llm.corpus.clean import ARRAYS, BANDS, SHINGLES
from llm.text.views import View, Vocabulary, mix, views

SHARD = 100_000  # documents
SET = 20  # shingles of a synthetic document
BATCH = 256


def texts(limit: int) -> list[str]:
    """Return docstrings of the standard library, NumPy and SciPy, in a fixed order."""
    entries, _ = pydocs.list_files(["python", "numpy", "scipy"], ["docstring"])
    found: list[str] = []
    for entry in entries:
        found += [d["text"] for d in pydocs.read_file(entry, ["docstring"])]
    return found[:limit]


def speed(count: int) -> None:
    """Print megabytes of text per second of CPU time, the median and range of seven rounds."""
    given = texts(count)
    size = sum(len(text.encode()) for text in given) / 1e6

    def sign() -> None:
        for start in range(0, len(given), BATCH):
            batch = [{"text": text} for text in given[start : start + BATCH]]
            minhash.sign(views(batch))

    def find(unit: str, run: int) -> None:
        measured = units.measure(given, unit)
        order = np.arange(len(given))
        repeats.find([measured], order, np.ones(len(given), bool), run)

    parts = {
        "MinHash bands, words split": sign,
        "runs of 50 words": lambda: find("words", 50),
        "runs of 3 sentences": lambda: find("sentences", 3),
        "lines": lambda: find("lines", 1),
    }
    print(f"{len(given):,} docstrings, {size:.1f} MB")
    for name, function in parts.items():
        rounds = []
        for _ in range(7):
            start = time.process_time()
            function()
            rounds.append(size / (time.process_time() - start))
        middle = statistics.median(rounds)
        print(f"{name:30}{middle:6.1f} MB/s ({min(rounds):.1f} to {max(rounds):.1f})", flush=True)


def planted(count: int) -> None:
    """Print recall and precision on edited docstrings, by their exact similarity."""
    rng = np.random.default_rng(0)
    originals = [text for text in texts(200_000) if 60 <= len(text.split()) <= 2000]
    chosen = [originals[i] for i in rng.permutation(len(originals))[:count]]
    count = len(chosen)
    copies = [_edited(text.split(" "), rng) for text in chosen]
    signed = _sign([*chosen, *copies])
    sets = [signed.shingles[a:b] for a, b in zip(signed.offsets, signed.offsets[1:], strict=False)]
    pairs: set[tuple[int, int]] = set()
    for band in signed.bands.T:
        members, bucket = cluster.buckets(band, np.arange(2 * count))
        left, right, _ = cluster.compare(members, bucket, lambda a, b: np.zeros(len(a), bool))
        pairs |= set(zip(left.tolist(), right.tolist(), strict=True))
    true = np.array([minhash.jaccard(sets[i], sets[count + i]) for i in range(count)])
    found = np.array([(i, count + i) in pairs for i in range(count)])
    for low, high in ((0.85, 1.01), (0.7, 0.85), (0.5, 0.7)):
        mine = (true >= low) & (true < high)
        print(f"similarity {low:.2f} to {min(high, 1):.2f}: {found[mine].sum()} of {mine.sum()} "
              f"found, {found[mine].mean():.4f}")  # fmt: skip
    checked = [minhash.jaccard(sets[a], sets[b]) for a, b in pairs]
    right = sum(value >= 0.7 for value in checked)
    print(f"candidates {len(pairs)}, of which {right} reach 0.7 ({right / len(pairs):.4f}); "
          "verification keeps exactly these")  # fmt: skip


def licences() -> None:
    """Print clusters of the licence files of installed packages against all pairs."""
    named = re.compile(r"(licen[cs]e|notice|copying)[^/]*(\.txt|\.md|\.rst)?$", re.IGNORECASE)
    places = {
        str(found.locate_file(file))
        for found in importlib.metadata.distributions()
        for file in found.files or []
        if named.search(str(file)) and "dist-info" in str(file)
    }
    given = [Path(place).read_text("utf-8", "replace") for place in sorted(places)]
    signed = _sign(given)
    count = len(given)
    sets = [signed.shingles[a:b] for a, b in zip(signed.offsets, signed.offsets[1:], strict=False)]
    pairs = [(i, j) for i in range(count) for j in range(i) if _alike(sets[i], sets[j])]
    true = cluster.components(count, *np.array(pairs).reshape(-1, 2).T)
    label = np.arange(count)
    for band in signed.bands.T:
        members, bucket = cluster.buckets(band, np.arange(count))
        left, right, same = cluster.compare(
            members,
            bucket,
            lambda a, b: np.array(
                [_alike(sets[i], sets[j]) for i, j in zip(a, b, strict=True)], bool
            ),
        )
        cluster.join(label, left[same], right[same])
    found = cluster.roots(label, np.arange(count))
    together = [found[i] == found[j] for i, j in pairs]
    wrong = sum(len(np.unique(true[found == root])) > 1 for root in np.unique(found))
    print(f"{count} licence files, {len(pairs)} pairs of similarity 0.7 or more: "
          f"{sum(together)} in one cluster ({np.mean(together):.4f}); "
          f"clusters {len(np.unique(true))} by all pairs, {len(np.unique(found))} found, "
          f"{wrong} of them join what is apart")  # fmt: skip


def _alike(left: np.ndarray, right: np.ndarray) -> bool:
    return minhash.jaccard(left, right) >= 0.7


def _sign(given: list[str]) -> minhash.Signatures:
    vocabulary = Vocabulary()
    parts = [
        minhash.sign([View(text, vocabulary) for text in given[start : start + BATCH]])
        for start in range(0, len(given), BATCH)
    ]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return minhash.Signatures(
        np.concatenate([part.bands for part in parts]),
        np.concatenate([part.shingles for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def _edited(words: list[str], rng: np.random.Generator) -> str:
    """Replace, drop or move words, at a rate drawn per text."""
    rate = rng.choice([0.002, 0.005, 0.01, 0.02, 0.05])
    kept = [word if rng.random() >= rate else f"other{word}" for word in words]
    kept = [word for word in kept if rng.random() >= rate / 4]
    return " ".join(kept)


def many(count: int) -> None:
    """Cluster synthetic signatures, of which one in five is a near copy of similarity 0.9."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        _synthesise(Path(folder), count)
        made = time.perf_counter() - start
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        start = time.perf_counter()
        corpus = select.load(Path(folder), -(-count // SHARD))
        chosen = select.select(corpus, by_group=False, validation=0.0)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        dropped = np.flatnonzero(chosen.status == select.NEAR)
        copies = np.arange(count) % 5 == 4
        right = chosen.keeper[dropped] == dropped - 4
        print(f"{count:,} signatures made in {made:.0f} s (peak {before:.2f} GB); clustered in "
              f"{seconds:.0f} s, peak memory {peak:.2f} GB; {copies.sum():,} copies planted, "
              f"{copies[dropped].sum():,} found ({copies[dropped].sum() / copies.sum():.5f}), "
              f"{len(dropped) - right.sum():,} wrong")  # fmt: skip


def _synthesise(folder: Path, count: int) -> None:
    """Write shards as the cleaning does; document 5k + 4 is 5k with another first shingle."""
    for index, start in enumerate(range(0, count, SHARD)):
        size = min(SHARD, count - start)
        names = np.arange(start, start + size, dtype=np.uint64)
        seeds = np.where(names % 5 == 4, names - np.uint64(4), names)
        sets = mix(seeds[:, None] * np.uint64(SET) + np.arange(SET, dtype=np.uint64))
        sets[:, 0] = mix(names + np.uint64(1 << 60))
        shingles = np.sort(sets >> (np.uint64(64) - minhash.BITS), axis=1).ravel()
        offsets = np.arange(size + 1) * SET
        bands = minhash.band_hashes(shingles, offsets, 14, 8)
        stored.save(folder / BANDS.format(index), np.ascontiguousarray(bands.T))
        stored.save(folder / SHINGLES.format(index), shingles)
        columns: dict[str, Any] = {
            "exact": np.stack([names, np.zeros_like(names)], axis=1),
            "name": names,
            "url": np.zeros(size, np.uint64),
            "lean": np.zeros(size, np.int8),
            "group": names,
            "size": np.full(size, 1000),
            "score": np.zeros(size, np.float32),
            "planted": np.zeros(size, bool),
            "offsets": offsets,
        }
        stored.save(folder / ARRAYS.format(index), columns)


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", help="speed, planted, licences, many")
    parser.add_argument("--documents", type=int, default=0)
    given = parser.parse_args()
    wanted = given.parts or ["speed", "planted", "licences", "many"]
    if "speed" in wanted:
        speed(given.documents or 20_000)
    if "planted" in wanted:
        planted(given.documents or 5000)
    if "licences" in wanted:
        licences()
    if "many" in wanted:
        many(given.documents or 10_000_000)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Time the corpus stage's parts on one core, on the docstrings of this installation.

Command:  python benchmarks/corpus.py [--documents=4000]
Prints one line per part; megabytes are of UTF-8 text, the median of three rounds.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.corpus import decontaminate, filters, minhash, pydocs, warc, wiki
from llm.text import language, normalize, pii
from llm.text.views import views

CHAIN = ("gopher_repetition", "gopher_quality", "c4_paper", "fineweb")
BATCH = 256


def texts(limit: int) -> list[str]:
    """Return the first docstrings of the standard library and SciPy, in a fixed order."""
    entries, _ = pydocs.list_files(["python", "scipy"], ["docstring"])
    found: list[str] = []
    for entry in entries:
        found += [d["text"] for d in pydocs.read_file(entry, ["docstring"])]
        if len(found) >= limit:
            break
    return found[:limit]


def documents(given: list[str]) -> list[list[dict[str, Any]]]:
    """Return fresh documents in batches, without views."""
    made = [{"id": str(i), "text": t, "source": "b", "meta": {}} for i, t in enumerate(given)]
    return [made[i : i + BATCH] for i in range(0, len(made), BATCH)]


def chain(given: list[str]) -> None:
    """Run the four filters; a dropped document is not judged again."""
    bound = filters.build(CHAIN)
    for batch in documents(given):
        for _, function in bound:
            batch, _ = filters.apply(function, batch)


def signatures(given: list[str]) -> None:
    """Split words and compute MinHash bands."""
    for batch in documents(given):
        minhash.sign(views(batch))


def bands_only(given: list[str]) -> Callable[[], None]:
    """Return a function that computes MinHash bands of texts whose words are already split."""
    split = [views(batch) for batch in documents(given)]
    return lambda: [minhash.sign(batch) for batch in split] and None


def contamination(given: list[str]) -> None:
    """Split words and look every 13-gram up in an index of 2,000 of the texts' own beginnings."""
    index = decontaminate.build([text[200:400] for text in given[:2000]])
    for batch in documents(given):
        decontaminate.counts(index, views(batch))


def archive(given: list[str], folder: Path) -> Callable[[], None]:
    """Return a function that reads a gzipped web archive with these texts as WET records."""
    file = folder / "b.warc.wet.gz"
    with file.open("wb") as target:
        for number, text in enumerate(given):
            body = text.encode()
            head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://x/{number}\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            target.write(gzip.compress(head.encode() + body + b"\r\n\r\n"))
    return lambda: [warc.page_of(record) for record in warc.records(file)] and None


def speed(function: Callable[[], Any], size: float) -> str:
    """Return megabytes per second of CPU time, the median of three rounds."""
    rounds = []
    for _ in range(3):
        start = time.process_time()
        function()
        rounds.append(size / 1e6 / max(time.process_time() - start, 1e-9))
    return f"{statistics.median(rounds):8.1f} MB/s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--documents", type=int, default=4000)
    given = texts(parser.parse_args().documents)
    size = sum(len(text.encode()) for text in given)
    print(f"{len(given):,} docstrings, {size / 1e6:.2f} MB")
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], Any]] = {
            "Gopher + C4 + FineWeb chain, words split": lambda: chain(given),
            "MinHash, words split": lambda: signatures(given),
            "MinHash of split words": bands_only(given),
            "decontamination, words split": lambda: contamination(given),
            "normalisation": lambda: [normalize.normalize(text) for text in given],
            "language": lambda: [language.detect(text) for text in given],
            "WET archive, gzip": archive(given, Path(folder)),
            "wikitext": lambda: [wiki.plain_text(text) for text in given],
            **{
                f"personal data: {name}": lambda name=name: [pii.redact(t, (name,)) for t in given]
                for name in pii.available()
            },
            "personal data: all": lambda: [pii.redact(t, pii.available()) for t in given],
        }
        for name, function in parts.items():
            print(f"{name:42}{speed(function, size)}", flush=True)


if __name__ == "__main__":
    main()

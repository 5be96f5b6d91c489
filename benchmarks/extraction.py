# SPDX-License-Identifier: Apache-2.0
"""Score text extraction on real pages whose article a person marked.

Command:  python benchmarks/extraction.py FOLDER [--modes quality,fast,trafilatura,resiliparse]
FOLDER:   NAME.html.gz files and ground-truth.json {NAME: {"articleBody": text}}, as in the public
          article-extraction benchmark.

The metric is that benchmark's own: texts become multisets of runs of four words; each page's
true positives, false positives and misses are divided by their sum; precision and recall are
means over the pages that have them, and F1 is their harmonic mean.
"""

import argparse
import gzip
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from llm.corpus import html

WORDS = re.compile(r"\w+")
RUN = 4


class Score(NamedTuple):
    """Precision, recall and F1 over pages."""

    precision: float
    recall: float
    f1: float


Counts = tuple[int, int, int]


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Count the runs of four words; a shorter text is one run."""
    words = WORDS.findall(text)
    runs = max(1, len(words) - RUN + 1) if words else 0
    return Counter(tuple(words[i : i + RUN]) for i in range(runs))


def counts(true: str, found: str) -> Counts:
    """Return how many runs are right, too many, and missed."""
    wanted, got = shingles(true), shingles(found)
    right = sum((wanted & got).values())
    return right, sum(got.values()) - right, sum(wanted.values()) - right


def score(pages: Iterable[Counts]) -> Score:
    """Average over pages."""
    pages = list(pages)
    precision = statistics.fmean([r / (r + more) for r, more, _ in pages if r + more])
    recall = statistics.fmean([r / (r + missed) for r, _, missed in pages if r + missed])
    return Score(precision, recall, 2 * precision * recall / max(precision + recall, 1e-12))


def spread(pages: list[Counts], draws: int = 500) -> float:
    """Return half the width of the 95 % bootstrap interval of F1."""
    generator = random.Random(0)
    drawn = [score(generator.choices(pages, k=len(pages))).f1 for _ in range(draws)]
    return 1.96 * statistics.stdev(drawn)


def load(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return {name: (page bytes, article text)}."""
    truth = json.loads((folder / "ground-truth.json").read_text("utf-8"))
    return {
        name: (gzip.decompress((folder / f"{name}.html.gz").read_bytes()), entry["articleBody"])
        for name, entry in sorted(truth.items())
    }


def bare_trafilatura(page: bytes) -> str:
    """Extract with the library's defaults."""
    import trafilatura

    return trafilatura.extract(page) or ""


def bare_resiliparse(page: bytes) -> str:
    """Extract with the library's main-content mode."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    return extract_plain_text(bytes_to_str(page, detect_encoding(page)), main_content=True)


EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    "quality": lambda page: html.extract_text(page, mode="quality"),
    "fast": lambda page: html.extract_text(page, mode="fast"),
    "trafilatura": bare_trafilatura,
    "resiliparse": bare_resiliparse,
}


def run(pages: dict[str, tuple[bytes, str]], mode: str) -> dict[str, float]:
    """Extract every page in one mode; return its score, spread and pages per second."""
    extract = EXTRACTORS[mode]
    extract(next(iter(pages.values()))[0])  # loading the library is not what is timed
    start = time.process_time()
    found = {name: extract(page) for name, (page, _) in pages.items()}
    seconds = time.process_time() - start
    all_counts = [counts(pages[name][1], text) for name, text in found.items()]
    result = score(all_counts)
    return {
        **result._asdict(),
        "spread": spread(all_counts),
        "pages_per_s": len(pages) / seconds,
    }


def main() -> None:
    """Print one line per mode."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--modes", default=",".join(EXTRACTORS))
    options = parser.parse_args()
    pages = load(options.folder)
    print(f"{len(pages)} pages\nmode          F1      ±       precision  recall  pages/s")
    for mode in options.modes.split(","):
        row = run(pages, mode)
        print(
            f"{mode:<12}  {row['f1']:.4f}  {row['spread']:.4f}  {row['precision']:.4f}     "
            f"{row['recall']:.4f}  {row['pages_per_s']:.0f}"
        )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Drop documents that share runs of words with evaluation sets (13-grams as in GPT-3, app. C).

Words are compared without case, accents and punctuation, digits by place only. An item shorter than
a run counts whole from `SHORTEST` words on.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm import files
from llm.corpus.documents import Document, Outcome, judge
from llm.errors import ConfigError, DataError
from llm.text import records
from llm.text.lines import read_lines
from llm.text.views import ROLL, View, Vocabulary, Words, mix, views

SHORTEST = 8
RUN = 13


class Index(NamedTuple):
    """Sorted hashes of the runs of an evaluation set, per length."""

    runs: dict[int, np.ndarray]
    items: int


def decontaminate(
    batch: list[Document],
    *,
    eval_file: str = "",
    eval_files: tuple[str, ...] = (),
    n: int = RUN,
    max_runs: int = 0,
) -> list[Outcome]:
    """Keep documents that share no run of words with the evaluation sets.

    Args:
        batch: documents.
        eval_file, eval_files: JSONL (.gz, .zst), Parquet or text; of a record, all strings count,
            each for itself.
        n: words of a run.
        max_runs: runs shared with one evaluation set that are forgiven.
    """
    wanted = tuple(filter(None, (eval_file, *eval_files)))
    if not wanted:
        raise ConfigError(
            "The filter decontaminate has no evaluation set.",
            "Give --config.filters.decontaminate.eval_file=FILE.",
        )
    shared = views(batch)
    found = [counts(_index(file, n), shared).tolist() for file in wanted]
    reasons = [f"contaminated_{Path(file).name.split('.')[0]}" for file in wanted]
    return [
        judge(document, [(r, v, max_runs, -1) for r, v in zip(reasons, values, strict=True)])
        for document, *values in zip(batch, *found, strict=True)
    ]


def counts(index: Index, batch_views: list[View]) -> np.ndarray:
    """Return how many runs of each text the index holds, int64 [n]."""
    words = Words(batch_views)
    hashed = words.get("shingle")
    real = hashed != 0
    hashed, owner = hashed[real], words.owner[real]
    total = np.zeros(len(batch_views), np.int64)
    for length, known in index.runs.items():
        found = runs(hashed, length)
        whole = owner[: len(found)] == owner[length - 1 :]  # no run reaches into the next text
        place = np.minimum(np.searchsorted(known, found), len(known) - 1)
        hits = whole & (known[place] == found)
        total += np.bincount(owner[: len(found)][hits], minlength=len(total))
    return total


def runs(hashed: np.ndarray, length: int) -> np.ndarray:
    """Hash every run of `length` words, uint64 [words - length + 1]."""
    total = len(hashed) - length + 1
    if total <= 0:
        return np.zeros(0, np.uint64)
    value = np.zeros(total, np.uint64)
    for offset in range(length):
        value = value * ROLL + hashed[offset : offset + total]
    return mix(value)


def build(texts: list[str], n: int = RUN) -> Index:
    """Index the runs of texts; those with fewer than `SHORTEST` words are left out."""
    vocabulary = Vocabulary()
    found: dict[int, list[np.ndarray]] = {}
    items = 0
    for text in texts:
        hashed = _words(View(text, vocabulary))
        length = min(n, len(hashed))
        if length >= min(SHORTEST, n):
            items += 1
            found.setdefault(length, []).append(runs(hashed, length))
    return Index({k: np.unique(np.concatenate(v)) for k, v in sorted(found.items())}, items)


def _words(view: View) -> np.ndarray:
    """Return the hashes of a text's words without marks."""
    hashed = view.vocabulary.column("shingle")[view.ids]
    return hashed[hashed != 0]


@functools.lru_cache(maxsize=64)
def _index(source: str, n: int) -> Index:
    texts: list[str] = []
    for shard in records.find_shards(source):
        texts += _strings_of(shard)
    index = build(texts, n)
    if not index.items:
        raise DataError(
            f"{source} holds no text of {SHORTEST} words or more.",
            "Check filters.decontaminate.eval_file.",
        )
    return index


def _strings_of(shard: Any) -> list[str]:
    """Return all strings of a file's records, however its fields are called."""
    if ".jsonl" not in shard.name:
        return [d["text"] for d in records.read_documents(shard, max_error_rate=0.0)]
    texts: list[str] = []
    for number, content, problem in read_lines(shard):
        if not problem and not content.strip():
            continue
        try:
            if problem:
                raise ValueError(problem)
            _collect(files.parse_json(content.decode("utf-8")), texts)
        except ValueError as error:
            raise DataError(
                f"{shard}, line {number}: {error}.", "Repair the evaluation set."
            ) from error
    return texts


def _collect(value: Any, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _collect(inner, texts)

# SPDX-License-Identifier: Apache-2.0
"""Who a corpus speaks of: counts of terms, documents with genders exchanged, balanced documents."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm.corpus.documents import Document
from llm.errors import ConfigError
from llm.text import terms
from llm.text.views import View, Words, mix

SWAPPED = "{}#swapped"
SHOWN = 20


def check(count: bool, window: int, augment: float, balance: float) -> None:
    """Raise ConfigError for numbers that make no sense."""
    if window < 1 or not 0 <= augment <= 1 or not 0 <= balance <= 1:
        raise ConfigError(
            f"bias has window={window}, augment={augment}, balance={balance}.",
            "The window is at least 1; the others are shares from 0 to 1.",
        )


def leanings(batch_views: list[View]) -> np.ndarray:
    """Return per document 1 if it has more female words, -1 if more male ones, else 0."""
    words = Words(batch_views)
    code = words.get("term")
    female, male = words.total(code == terms.CODES["she"]), words.total(code == terms.CODES["he"])
    return np.sign(female - male).astype(np.int8)


def count(batch_views: list[View], window: int) -> Counter:
    """Count gender words, and occupations and nationalities with gender words beside them.

    Args:
        batch_views: documents.
        window: words on either side that count as beside.

    Returns:
        "words/female" and so on; "documents/female": documents with more female than male words;
        "occupation/nurse/female": nurses with a female word beside them, "…/all" all of them.
    """
    words = Words(batch_views)
    code = words.get("term")
    found: Counter = Counter()
    lean = leanings(batch_views)
    for name, sign in (("female", 1), ("male", -1), ("neither", 0)):
        found[f"documents/{name}"] += int((lean == sign).sum())
    places = np.flatnonzero(code >= terms.FIRST)
    low = np.maximum(places - window, words.offsets[:-1][words.owner[places]])
    high = np.minimum(places + window + 1, words.offsets[1:][words.owner[places]])
    for name, example in (("female", "she"), ("male", "he")):
        mine = code == terms.CODES[example]
        found[f"words/{name}"] += int(mine.sum())
        sums = np.concatenate([[0], np.cumsum(mine)])
        _add(found, code[places[sums[high] > sums[low]]], name)
    _add(found, code[places], "all")
    return found


def _add(found: Counter, codes: np.ndarray, what: str) -> None:
    numbers, counts = np.unique(codes, return_counts=True)
    for number, times in zip(numbers.tolist(), counts.tolist(), strict=True):
        found[f"{terms.NAMES[number]}/{what}"] += times


def table(counts: Mapping[str, int]) -> dict[str, Any]:
    """Arrange counts: words and documents by gender, the most frequent terms of each group."""
    arranged: dict[str, Any] = {"words": {}, "documents": {}}
    groups: dict[str, dict[str, dict[str, int]]] = {"occupation": {}, "nationality": {}}
    for key, number in sorted(counts.items()):
        group, *rest = key.split("/")
        if group in groups:
            groups[group].setdefault(rest[0], {"female": 0, "male": 0, "all": 0})[rest[1]] = number
        else:
            arranged[group][rest[0]] = number
    for group, rows in groups.items():
        order = sorted(rows, key=lambda word: (-rows[word]["all"], word))[:SHOWN]
        arranged[group] = {word: rows[word] for word in order}
    return arranged


def excess(lean: np.ndarray, names: np.ndarray, balance: float, seed: int) -> np.ndarray:
    """Return which documents of the more frequent leaning go, bool [n].

    Args:
        lean: of `leanings`.
        names: hashes of the documents' names, which with the seed say which ones go.
        balance: what the rarer leaning is to have of the other's number, at least; 0 asks nothing.
    """
    gone = np.zeros(len(lean), bool)
    female, male = int((lean > 0).sum()), int((lean < 0).sum())
    most, least = max(female, male), min(female, male)
    if not balance or not least or least >= balance * most:
        return gone
    larger = np.flatnonzero(lean > 0 if female > male else lean < 0)
    order = np.argsort(mix(names[larger] ^ np.uint64(seed)), kind="stable")
    gone[larger[order[: most - int(least / balance)]]] = True
    return gone


def counterfactuals(document: Document, rate: float, seed: int) -> list[Document]:
    """Return the document with genders exchanged, if it is among those chosen and has any."""
    digest = hashlib.blake2b(f"{seed}:{document['id']}".encode("utf-8", "replace"), digest_size=8)
    if int.from_bytes(digest.digest(), "little") >= rate * 2**64:
        return []
    swapped = terms.swap_genders(document["text"])
    if not swapped.words:
        return []
    meta = {**document["meta"], "counterfactual_of": document["id"]}
    made = {"id": SWAPPED.format(document["id"]), "text": swapped.text, "meta": meta}
    return [{**document, **made}]

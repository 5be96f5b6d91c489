# SPDX-License-Identifier: Apache-2.0
"""Words, lines and hashes of documents, computed once per batch and shared by all rules."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from llm.text import terms

# A word (inner hyphens, apostrophes and dots included), a mark, or a run of one mark.
# `x x*` for `x+`: an alternative that begins with a character or class is rejected faster.
# No possessive groups: before Python 3.11.5 they keep what a last, failed turn has read.
_PATTERN = (
    r"\w\w*+(?:[-'’.]\w\w*+)*|[^\w\s.\-=*#~!?+<>]"
    r"|\.\.*|--*|==*|\*\**|##*|~~*|!!*|\?\?*|\+\+*|<<*|>>*"
)
WORD = re.compile(_PATTERN)
# The same for ASCII text, half as fast again; \x1c-\x1f are white space to Unicode only.
WORD_ASCII = re.compile(_PATTERN.replace("’", "").replace(r"\s.", r"\s\x1c-\x1f."), re.ASCII)
SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)")
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
VOCABULARY_LIMIT = 1_000_000  # distinct words kept before the table starts again

MIX_1 = np.uint64(0x9E3779B97F4A7C15)
MIX_2 = np.uint64(0xBF58476D1CE4E5B9)
MIX_3 = np.uint64(0x94D049BB133111EB)
ROLL = np.uint64(0x100000001B3)


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values one to one (the splitmix64 finaliser)."""
    values = values + MIX_1
    values = (values ^ (values >> np.uint64(30))) * MIX_2
    values = (values ^ (values >> np.uint64(27))) * MIX_3
    return values ^ (values >> np.uint64(31))


class Vocabulary:
    """Number distinct words and keep their properties as arrays, one entry per word."""

    def __init__(self) -> None:
        self.ids: defaultdict[str, int] = defaultdict()
        self.ids.default_factory = self.ids.__len__  # a new word gets the next number, in C
        self.columns: dict[str, np.ndarray] = {}

    def number(self, words: list[str]) -> np.ndarray:
        """Return the int32 ids of words, adding the new ones."""
        return np.fromiter(map(self.ids.__getitem__, words), np.int32, len(words))

    def column(self, name: str) -> np.ndarray:
        """Return one property of every word: see `PROPERTIES`."""
        function, dtype = PROPERTIES[name]
        done = self.columns.get(name, np.zeros(0, dtype))
        if len(done) < len(self.ids):
            words = list(self.ids)[len(done) :]
            fresh = np.fromiter(map(function, words), dtype, len(words))
            self.columns[name] = done = np.concatenate([done, fresh])
        return done


def _has_letter(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))


def _is_symbol(word: str) -> bool:
    return not (word.isalnum() or any(c.isalnum() for c in word))


def shingle_word(word: str) -> int:
    """Hash a word as near-duplicate detection sees it: no case, accents, or digits; 0 = symbol."""
    if _is_symbol(word):
        return 0
    word = word.lower()
    if not word.isascii():
        parts = unicodedata.normalize("NFD", word)
        word = "".join(c for c in parts if not unicodedata.combining(c))
    word = re.sub(r"\d", "0", word)
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1


PROPERTIES: dict[str, tuple[Callable[[str], Any], Any]] = {
    "length": (len, np.int32),
    "letter": (_has_letter, np.bool_),
    "symbol": (_is_symbol, np.bool_),
    "stop": (lambda word: word in STOP_WORDS, np.bool_),
    "shingle": (shingle_word, np.uint64),
    "term": (terms.code, np.int16),
}


class View:
    """Hold what rules share about one text."""

    __slots__ = ("ids", "lines", "text", "vocabulary", "words")

    def __init__(self, text: str, vocabulary: Vocabulary):
        self.text = text
        self.vocabulary = vocabulary
        self.words: list[str] = (WORD_ASCII if text.isascii() else WORD).findall(text)
        self.ids = vocabulary.number(self.words)
        self.lines = text.split("\n")


_SHARED = Vocabulary()


def views(batch: list[dict[str, Any]]) -> list[View]:
    """Return the views of a batch of documents, made once per text and kept under "_view"."""
    global _SHARED
    held = [document.get("_view") for document in batch]
    if all(v is not None and v.text is d["text"] for v, d in zip(held, batch, strict=True)):
        shared = {id(v.vocabulary) for v in held if v is not None}
        if len(shared) <= 1:
            return [v for v in held if v is not None]
    if len(_SHARED.ids) > VOCABULARY_LIMIT:
        _SHARED = Vocabulary()
    for document in batch:
        view = document.get("_view")
        if view is None or view.text is not document["text"] or view.vocabulary is not _SHARED:
            document["_view"] = View(document["text"], _SHARED)
    return [document["_view"] for document in batch]


class Words:
    """Concatenate the word ids of a batch: ids [N], offsets [n+1], owner (document) [N]."""

    def __init__(self, batch_views: list[View]):
        counts = np.fromiter((len(v.ids) for v in batch_views), np.int64, len(batch_views))
        self.counts = counts
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.ids = (
            np.concatenate([v.ids for v in batch_views]) if batch_views else np.zeros(0, np.int32)
        )
        self.owner = np.repeat(np.arange(len(batch_views)), counts)
        self.vocabulary = batch_views[0].vocabulary if batch_views else _SHARED

    def get(self, name: str) -> np.ndarray:
        """Return a word property for every word of the batch, [N]."""
        return self.vocabulary.column(name)[self.ids]

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum a per-word value over each document, [n]."""
        sums = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]

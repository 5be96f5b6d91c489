# SPDX-License-Identifier: Apache-2.0
"""Cut texts into units (words, sentences, lines, paragraphs), hash them, and take runs of them out.

A unit is a range of characters that starts and ends at white space, or beside a Chinese or Japanese
character; so whatever is taken out, words and characters stay whole.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm.text.views import SENTENCE_END

Span = tuple[int, int]

_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters: no blanks between
WORD = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")
BLANKS = re.compile(r"\s*")
LINE = re.compile(r"[^\n]+")
BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
MOST_HASHES = 1 << 20  # words whose hashes are remembered
LONGEST = np.iinfo(np.uint16).max  # a unit's stored length


class Units(NamedTuple):
    """Units of n documents: hash [N], length in characters [N] (at most 65,535), offsets [n+1]."""

    hashes: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray


def words(text: str) -> Iterator[Span]:
    """Yield runs of characters between blanks; Chinese and Japanese characters one by one."""
    return (match.span() for match in WORD.finditer(text))


def lines(text: str) -> Iterator[Span]:
    """Yield the lines that hold something, without the blanks around it."""
    return _stripped(text, (match.span() for match in LINE.finditer(text)))


def paragraphs(text: str) -> Iterator[Span]:
    """Yield the blocks between blank lines."""
    start = 0
    for match in BLANK_LINES.finditer(text):
        yield from _stripped(text, [(start, match.start())])
        start = match.end()
    yield from _stripped(text, [(start, len(text))])


def sentences(text: str) -> Iterator[Span]:
    """Yield what end marks before a blank, or blank lines, part."""
    for start, end in paragraphs(text):
        for match in SENTENCE_END.finditer(text, start, end):
            yield from _stripped(text, [(start, match.end())])
            start = match.end()
        yield from _stripped(text, [(start, end)])


def _stripped(text: str, spans: Iterator[Span] | Sequence[Span]) -> Iterator[Span]:
    for start, end in spans:
        content = text[start:end]
        left = content.lstrip()
        if left:
            first = end - len(left)
            yield first, first + len(left.rstrip())


UNITS: dict[str, Callable[[str], Iterator[Span]]] = {
    "paragraphs": paragraphs,
    "lines": lines,
    "sentences": sentences,
    "words": words,
}


class _Hashes(dict):
    """Hash a unit on first sight and remember it."""

    def __missing__(self, unit: str) -> int:
        digest = hashlib.blake2b(unit.encode("utf-8", "replace"), digest_size=8).digest()
        self[unit] = value = int.from_bytes(digest, "little")
        return value


_SEEN = _Hashes()


def measure(texts: Sequence[str], unit: str) -> Units:
    """Hash the units of texts: words as they stand, others without regard to case and blanks."""
    if len(_SEEN) > MOST_HASHES:
        _SEEN.clear()
    found: list[str] = []
    counts = [0]
    lengths: list[int] = []
    for text in texts:
        if unit == "words":
            parts = WORD.findall(text)
            lengths += map(len, parts)
        else:
            parts = [text[start:end] for start, end in UNITS[unit](text)]
            lengths += map(len, parts)
            parts = [" ".join(part.lower().split()) for part in parts]
        found += parts
        counts.append(len(parts))
    remembered = _SEEN if unit == "words" else _Hashes()
    return Units(
        np.fromiter(map(remembered.__getitem__, found), np.uint64, len(found)),
        np.minimum(np.asarray(lengths, np.int64), LONGEST).astype(np.uint16),
        np.cumsum(counts),
    )


def joined(parts: Sequence[Units]) -> Units:
    """Lay the units of several batches end to end."""
    empty = measure([], "words")
    counts = [np.diff(part.offsets) for part in parts]
    return Units(
        np.concatenate([empty.hashes, *(part.hashes for part in parts)]),
        np.concatenate([empty.lengths, *(part.lengths for part in parts)]),
        np.cumsum(np.concatenate([[0], *counts])),
    )


def without(text: str, cuts: Sequence[tuple[str, int, int]]) -> str:
    """Take runs of units out of a text.

    Where a run goes, one of the two stretches of white space around it stays: the one with more
    line breaks, so that neither words nor paragraphs run into each other.

    Args:
        text: as it was measured.
        cuts: (unit, first, end): units first … end-1 go.
    """
    ranges: list[Span] = []
    for unit in UNITS:
        mine = [(first, end) for name, first, end in cuts if name == unit]
        spans = list(UNITS[unit](text)) if mine else []
        ranges += [(spans[first][0], spans[end - 1][1]) for first, end in mine]
    pieces: list[str] = []
    done = 0
    for start, end in _merged(sorted(ranges)):
        before = text[done:start].rstrip()
        left = text[done + len(before) : start]
        blank = BLANKS.match(text, end)
        done = blank.end() if blank else end
        right = text[end:done]
        pieces.append(before)
        if (before or len(pieces) > 1) and done < len(text):
            pieces.append(left if left.count("\n") > right.count("\n") else right)
    return "".join([*pieces, text[done:]]).strip("\n").rstrip()


def _merged(ranges: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged

# SPDX-License-Identifier: Apache-2.0
"""Gopher's quality and repetition rules (Rae et al. 2021, table A1), vectorised over a batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llm.corpus.documents import Check, Document, Drop, Outcome, judge
from llm.text.views import ROLL, View, Words, mix, views

BULLETS = ("•", "-", "*", "–", "●", "‣", "◦")
ELLIPSES = ("...", "…")


def quality(
    batch: list[Document],
    *,
    min_words: int = 50,
    max_words: int = 100_000,
    min_mean_length: float = 3.0,
    max_mean_length: float = 10.0,
    max_hashes: float = 0.1,
    max_ellipses: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_letter_words: float = 0.8,
    min_stop_words: int = 2,
) -> list[Outcome]:
    """Keep documents that read like prose.

    Args:
        batch: documents.
        min_words, max_words: number of words that are not symbols.
        min_mean_length, max_mean_length: mean length of these words.
        max_hashes, max_ellipses: "#" and ellipses per word.
        max_bullet_lines, max_ellipsis_lines: share of lines that start with a bullet or end
            with an ellipsis.
        min_letter_words: share of words with a letter.
        min_stop_words: different words among the, be, to, of, and, that, have, with.
    """
    shared = views(batch)
    words = Words(shared)
    symbol, length = words.get("symbol"), words.get("length")
    totals = words.total(~symbol)
    counts = np.maximum(words.counts, 1)
    # Plain numbers: comparing NumPy's one by one is slow.
    mean = (words.total(np.where(symbol, 0, length)) / np.maximum(totals, 1)).tolist()
    letters = (words.total(words.get("letter")) / counts).tolist()
    plain, count = totals.tolist(), counts.tolist()
    stop = words.get("stop")
    results: list[Outcome] = []
    for i, document in enumerate(batch):
        view = shared[i]
        lines = [line for line in view.lines if line.strip()] or [""]
        checks = (
            ("gopher_too_few_words", plain[i], min_words, 1),
            ("gopher_too_many_words", plain[i], max_words, -1),
            ("gopher_short_words", mean[i], min_mean_length, 1),
            ("gopher_long_words", mean[i], max_mean_length, -1),
            ("gopher_hashes", view.text.count("#") / count[i], max_hashes, -1),
            ("gopher_ellipses", _ellipses(view.text) / count[i], max_ellipses, -1),
            ("gopher_bullet_lines", _bullets(lines), max_bullet_lines, -1),
            ("gopher_ellipsis_lines", _ending(lines), max_ellipsis_lines, -1),
            ("gopher_few_letters", letters[i], min_letter_words, 1),
            ("gopher_stop_words", _different(words, stop, i), min_stop_words, 1),
        )
        results.append(judge(document, checks))
    return results


def _ellipses(text: str) -> int:
    return text.count("...") + text.count("…")


def _bullets(lines: list[str]) -> float:
    return sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines)


def _ending(lines: list[str]) -> float:
    return sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines)


def _different(words: Words, stop: np.ndarray, i: int) -> int:
    part = slice(words.offsets[i], words.offsets[i + 1])
    return len(set(words.ids[part][stop[part]].tolist()))


TOP_N_GRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATE_N_GRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


def repetition(
    batch: list[Document],
    *,
    max_duplicate_lines: float = 0.30,
    max_duplicate_paragraphs: float = 0.30,
    max_duplicate_line_chars: float = 0.20,
    max_duplicate_paragraph_chars: float = 0.20,
    top_n_grams: Sequence[Sequence[float]] = TOP_N_GRAMS,
    duplicate_n_grams: Sequence[Sequence[float]] = DUPLICATE_N_GRAMS,
    min_words: int = 0,
) -> list[Outcome]:
    """Keep documents that do not repeat themselves.

    Args:
        batch: documents.
        max_duplicate_*: share of lines or paragraphs seen before in the document, by number and
            by characters.
        top_n_grams: (n, share of characters in the most frequent n-gram).
        duplicate_n_grams: (n, share of characters in n-grams seen before, without overlaps).
        min_words: n-gram rules look only at documents with as many words (0: at all).
    """
    shared = views(batch)
    results: list[Outcome] = []
    for document, view in zip(batch, shared, strict=True):
        checks = _repeated_blocks(
            view.text,
            (max_duplicate_paragraphs, max_duplicate_paragraph_chars),
            (max_duplicate_lines, max_duplicate_line_chars),
        )
        results.append(judge(document, checks))
    chosen = [
        i
        for i, outcome in enumerate(results)
        if not isinstance(outcome, Drop) and len(shared[i].words) >= max(min_words, 1)
    ]
    if not chosen:
        return results
    suspects = _suspects([shared[i] for i in chosen], top_n_grams, duplicate_n_grams)
    for position, rules in suspects.items():
        results[chosen[position]] = judge(
            batch[chosen[position]], _repeated_n_grams(shared[chosen[position]], rules)
        )
    return results


def _repeated_blocks(
    text: str, paragraphs: tuple[float, float], lines: tuple[float, float]
) -> Iterator[Check]:
    """Yield the shares of repeated paragraphs and lines; texts of one line have none."""
    if "\n" not in text:
        return
    size = max(len(text), 1)
    for name, marker, (by_number, by_chars) in (
        ("paragraph", "\n\n", paragraphs),
        ("line", "\n", lines),
    ):
        blocks = [b for b in text.strip().split(marker) if b.strip("\n")]
        if name == "paragraph":
            blocks = [block.strip("\n") for block in blocks]
        number, chars = seen_before(blocks)
        yield f"gopher_duplicate_{name}s", number / max(len(blocks), 1), by_number, -1
        yield f"gopher_duplicate_{name}_chars", chars / size, by_chars, -1


def seen_before(blocks: list[str]) -> tuple[int, int]:
    """Count the blocks, and their characters, that repeat an earlier one."""
    if len(set(blocks)) == len(blocks):
        return 0, 0
    seen: set[str] = set()
    number = chars = 0
    for block in blocks:
        if block in seen:
            number += 1
            chars += len(block)
        seen.add(block)
    return number, chars


class _Rule(NamedTuple):
    kind: str
    n: int
    limit: float
    chars: int = -1  # of the top n-gram, where it is known already


def _suspects(
    shared: list[View],
    top_n_grams: Sequence[Sequence[float]],
    duplicate_n_grams: Sequence[Sequence[float]],
) -> dict[int, list[_Rule]]:
    """Find the documents whose upper bound breaks an n-gram rule; most have none.

    A repeated n-gram contains a repeated (n-1)-gram, so only positions that repeat at one
    length are looked at for the next: the work falls quickly.
    """
    words = Words(shared)
    size = np.array([max(len(view.text), 1) for view in shared], np.float64)
    rules = [_Rule("top", int(n), limit) for n, limit in top_n_grams]
    rules += [_Rule("duplicate", int(n), limit) for n, limit in duplicate_n_grams]
    rules.sort(key=lambda rule: rule.n)
    length = words.get("length").astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(length)])
    base = mix(words.ids.astype(np.uint64))
    last = words.offsets[1:][words.owner]  # one past the document's last word, per word
    gram = base + mix(words.owner.astype(np.uint64))
    position = np.arange(len(base))
    found: dict[int, list[_Rule]] = {}
    reached = 1
    for rule in rules:
        while reached < rule.n:
            keep = position + reached < last[position]
            position, gram = position[keep], gram[keep]
            gram = mix(gram * ROLL + base[position + reached])
            reached += 1
        order = np.argsort(gram, kind="stable")
        ordered = gram[order]
        new = np.ones(len(ordered), bool)
        new[1:] = ordered[1:] != ordered[:-1]
        run = np.cumsum(new) - 1
        repeats = np.bincount(run)
        again = repeats[run] > 1
        chars = ends[position + rule.n] - ends[position]
        if rule.kind == "top":
            extra = rule.n - 1  # the blanks between the words
            first = order[new][repeats > 1]  # of each gram that repeats
            value = (chars + extra)[first] * repeats[repeats > 1]
            bound = np.zeros(len(shared))
            np.maximum.at(bound, words.owner[position[first]], value)
            alone = np.where(bound == 0, _first_gram(words, ends, rule.n), 0)
            for i in np.flatnonzero(alone / size > rule.limit):
                found.setdefault(int(i), []).append(rule._replace(chars=int(alone[i])))
        else:
            later = position[order[~new]]
            bound = _covered(words, length, later, rule.n)
        for i in np.flatnonzero(bound / size > rule.limit):
            found.setdefault(int(i), []).append(rule)
        kept = np.sort(order[again])
        position, gram = position[kept], gram[kept]
    return found


def _first_gram(words: Words, ends: np.ndarray, n: int) -> np.ndarray:
    """Return the characters of each document's first n-gram, the top one where none repeats."""
    start = words.offsets[:-1]
    stop = np.minimum(start + n, words.offsets[1:])
    return np.where(words.counts >= n, ends[stop] - ends[start] + n - 1, 0).astype(np.float64)


def _covered(words: Words, length: np.ndarray, later: np.ndarray, n: int) -> np.ndarray:
    """Bound the characters inside repeated n-grams by the words that these cover."""
    if not len(later):
        return np.zeros(len(words.counts))
    edges = np.zeros(len(length) + n + 1, np.int64)
    edges[later] += 1  # each position is there once
    edges[later + n] -= 1
    inside = np.cumsum(edges)[: len(length)] > 0
    return words.total(np.where(inside, length, 0))


def _repeated_n_grams(view: View, rules: list[_Rule]) -> Iterator[Check]:
    """Yield the exact values of n-gram rules for one document, in their published order.

    The first broken one decides: the others are not worth their time.
    """
    size = max(len(view.text), 1)
    for rule in sorted(rules, key=lambda r: (r.kind != "top", r.n)):
        if rule.kind == "top":
            share = (rule.chars if rule.chars >= 0 else top_chars(view, rule.n)) / size
            reason = f"gopher_top_{rule.n}_gram"
        else:
            share = duplicate_chars(view, rule.n) / size
            reason = f"gopher_duplicate_{rule.n}_grams"
        yield reason, share, rule.limit, -1
        if share > rule.limit:
            return


def top_chars(view: View, n: int) -> int:
    """Return count x characters of the most frequent n-gram (the first one among equals)."""
    counts = Counter(zip(*(view.words[k:] for k in range(n)), strict=False))
    if not counts:
        return 0
    best = max(counts, key=counts.__getitem__)
    return counts[best] * (sum(map(len, best)) + n - 1)


def duplicate_chars(view: View, n: int) -> int:
    """Return the characters of n-grams seen before, each word counted at most once."""
    if len(view.ids) < n:
        return 0
    base = mix(view.ids.astype(np.uint64))
    rolled = base[: len(base) - n + 1]
    for k in range(1, n):
        rolled = mix(rolled * ROLL + base[k : len(base) - n + 1 + k])
    grams = rolled.tolist()
    ends = [0, *np.cumsum(view.vocabulary.column("length")[view.ids]).tolist()]
    seen: set[int] = set()
    total = i = 0
    while i < len(grams):
        if grams[i] in seen:
            total += ends[i + n] - ends[i]
            i += n
        else:
            seen.add(grams[i])
            i += 1
    return total

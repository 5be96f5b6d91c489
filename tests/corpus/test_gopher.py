# SPDX-License-Identifier: Apache-2.0
"""Gopher's rules: every published constant at its boundary, and the fast code against loops."""

import math
from collections import Counter

import numpy as np
import pytest

from llm.corpus import gopher
from llm.corpus.documents import Drop
from llm.text.views import View, Vocabulary


def judge(function, text, **options):
    [outcome] = function([{"id": "x", "text": text, "meta": {}}], **options)
    return outcome if isinstance(outcome, Drop) else None


def prose(count, word="words"):
    """Return `count` words with two stop words and no repeats that any rule would mind."""
    return " ".join(["the", "and", *(f"{word}{i}" for i in range(count - 2))])


def test_published_thresholds():
    """The constants of the paper, as data.md and the reference filters state them."""
    assert gopher.TOP_N_GRAMS == ((2, 0.20), (3, 0.18), (4, 0.16))
    assert gopher.DUPLICATE_N_GRAMS == (
        (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)
    )  # fmt: skip


# (reason, text just inside the rule, text just outside)
BOUNDARIES = [
    ("gopher_too_few_words", prose(50), prose(49)),
    ("gopher_too_many_words", prose(100_000), prose(100_001)),
    # 50 words of mean length 3.0 and just below; of 10.0 and just above
    ("gopher_short_words", "the and " + "abc " * 48, "the and " + "abc " * 47 + "ab"),
    ("gopher_long_words", "that with " + "abcdefghij " * 46 + "abcdefghijabcdefghijab abcdefghij",
     "that with " + "abcdefghij " * 46 + "abcdefghijabcdefghijabc abcdefghij"),
    # "#a" is two words: 10 hashes among 100 words, then among 99
    ("gopher_hashes", prose(80) + " #a" * 10, prose(79) + " #a" * 10),
    ("gopher_ellipses", prose(89) + " …" * 10 + " z", prose(88) + " …" * 10 + " z"),
    ("gopher_bullet_lines", "\n".join(["- " + prose(8)] * 9 + [prose(8)]),
     "\n".join(["- " + prose(8)] * 10 + [prose(8)])),
    ("gopher_ellipsis_lines", "\n".join([prose(9) + "..."] * 3 + [prose(9)] * 7),
     "\n".join([prose(9) + "..."] * 4 + [prose(9)] * 6)),
    ("gopher_few_letters", prose(80) + " 1" * 20, prose(79) + " 1" * 21),
    ("gopher_stop_words", prose(60), prose(60).replace("and", "und")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "inside", "outside"), BOUNDARIES, ids=lambda v: v[:20])
def test_quality_boundaries(reason, inside, outside):
    drop = judge(gopher.quality, outside)
    assert drop is not None and drop.reason == reason
    kept = judge(gopher.quality, inside)
    assert kept is None, kept


def test_every_stop_word_counts_once():
    for word in ("the", "be", "to", "of", "and", "that", "have", "with"):
        base = " ".join(f"words{i}" for i in range(60))
        assert judge(gopher.quality, f"{base} {word} {word}").value == 1
        other = "the" if word != "the" else "be"
        assert judge(gopher.quality, f"{base} {word} {other}") is None


def filler(n):
    """Return n characters of different words, cut to length."""
    return " ".join(f"w{i:03d}" for i in range(n))[:n]


def test_duplicate_line_and_paragraph_fractions():
    blocks = {"top_n_grams": (), "duplicate_n_grams": ()}
    lines = [f"line number {i} of it" for i in range(100)]
    over_lines = lines[:69] + ["s"] + ["s"] * 30  # 30 of 100 repeat, few characters
    assert judge(gopher.repetition, "\n".join(over_lines), **blocks) is None
    over_lines = lines[:68] + ["s"] + ["s"] * 31
    drop = judge(gopher.repetition, "\n".join(over_lines), **blocks)
    assert drop.reason == "gopher_duplicate_lines" and drop.value == 0.31
    drop = judge(gopher.repetition, "\n\n".join(over_lines), **blocks)
    assert drop.reason == "gopher_duplicate_paragraphs" and drop.threshold == 0.30


@pytest.mark.parametrize("size", [200, 201])
def test_duplicate_line_characters(size):
    """Of 1000 characters, `size` lie in a repeated line: one above 0.20 is too many."""
    repeated = "".join(chr(97 + i % 26) for i in range(size))
    rest = filler(1000 - 2 * size - 2)
    text = f"{repeated}\n{rest}\n{repeated}"
    assert len(text) == 1000
    options = {"max_duplicate_lines": 1, "top_n_grams": (), "duplicate_n_grams": ()}
    drop = judge(gopher.repetition, text, **options)
    assert (drop is None) == (size == 200)
    if drop:
        assert drop.reason == "gopher_duplicate_line_chars" and drop.value == 0.201


@pytest.mark.parametrize(("n", "limit"), gopher.TOP_N_GRAMS)
def test_top_n_gram_boundary(n, limit):
    gram = " ".join(["aa", "bb", "cc", "dd"][:n])
    count = 10
    size = math.ceil(len(gram) * count / limit)
    for extra, dropped in ((0, False), (-1, True)):
        between = [f"{gram} x{i}" for i in range(count)]
        text = " ".join(between)
        text += " " + filler(size + extra - len(text) - 1)
        assert len(text) == size + extra
        drop = judge(gopher.repetition, text, top_n_grams=((n, limit),), duplicate_n_grams=())
        assert (drop is not None) == dropped, (n, extra)


@pytest.mark.parametrize(("n", "limit"), gopher.DUPLICATE_N_GRAMS)
def test_duplicate_n_gram_boundary(n, limit):
    gram = [f"g{i:03d}" for i in range(n)]
    chars = 4 * n
    size = math.ceil(chars / limit)
    for extra, dropped in ((0, False), (-1, True)):
        text = " ".join([*gram, "mid", *gram]) + " "
        text += filler(size + extra - len(text))
        assert len(text) == size + extra
        drop = judge(gopher.repetition, text, top_n_grams=(), duplicate_n_grams=((n, limit),))
        assert (drop is not None) == dropped, (n, extra)


def slow_top(words, n):
    counts = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(counts.most_common(1)[0][0]) * counts.most_common(1)[0][1] if counts else 0


def slow_duplicates(words, n):
    seen, total, i = set(), 0, 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            total += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return total


def test_batches_decide_as_a_plain_loop_does():
    rng = np.random.default_rng(0)
    batch = []
    for i in range(300):
        alphabet = int(rng.choice([3, 10, 60, 2000]))
        words = [f"w{t}" for t in rng.integers(0, alphabet, rng.integers(0, 200))]
        if i % 3 == 0 and len(words) > 20:
            words += words[5:20] * int(rng.integers(1, 4))
        batch.append({"id": str(i), "text": " ".join(words), "meta": {}})
    dropped = 0
    for document, outcome in zip(batch, gopher.repetition(batch), strict=True):
        view = View(document["text"], Vocabulary())
        expected = None
        size = max(len(view.text), 1)
        for n, limit in gopher.TOP_N_GRAMS:
            if expected is None and slow_top(view.words, n) / size > limit:
                expected = f"gopher_top_{n}_gram", slow_top(view.words, n) / size
        for n, limit in gopher.DUPLICATE_N_GRAMS:
            if expected is None and slow_duplicates(view.words, n) / size > limit:
                expected = f"gopher_duplicate_{n}_grams", slow_duplicates(view.words, n) / size
        found = (outcome.reason, outcome.value) if isinstance(outcome, Drop) else None
        assert found == expected
        dropped += found is not None
    assert 50 < dropped < 250


def test_empty_and_symbol_documents_do_not_crash():
    for text in ("", "\n\n\n", "....", "!!! ???", "a"):
        judge(gopher.repetition, text)
        assert judge(gopher.quality, text) is not None
    assert gopher.quality([]) == [] and gopher.repetition([]) == []

# SPDX-License-Identifier: Apache-2.0
"""Repeated runs against a plain search of all windows; texts stay whole where runs go."""

import itertools

import numpy as np
import pytest

from llm.corpus import repeats, units


def cut(texts, unit, run, *, rank=None, alive=None, shards=1, **options):
    """Return the texts without the repeated runs, through the real path."""
    parts = [units.measure(list(p), unit) for p in np.array_split(np.array(texts, object), shards)]
    count = len(texts)
    rank = np.arange(count) if rank is None else np.asarray(rank)
    alive = np.ones(count, bool) if alive is None else np.asarray(alive)
    found = repeats.find(parts, rank, alive, run, **options)
    cuts = [[] for _ in texts]
    for document, first, end in zip(*found, strict=True):
        cuts[document].append((unit, int(first), int(end)))
    return [units.without(text, mine) for text, mine in zip(texts, cuts, strict=True)], found


def brute(documents, rank, run):
    """Return per document which words go: in a later copy of a window, in no first copy of one."""
    seen, windows = {}, []
    for document in np.argsort(rank):
        words = documents[document]
        for i in range(len(words) - run + 1):
            key = tuple(words[i : i + run])
            windows.append((document, i, key))
            seen.setdefault(key, []).append((document, i))
    goes = [np.zeros(len(words), bool) for words in documents]
    for places in seen.values():
        for document, i in places[1:]:
            goes[document][i : i + run] = True
    for places in seen.values():
        if len(places) > 1:
            document, i = places[0]
            goes[document][i : i + run] = False
    return goes


def corpus(seed, count=40):
    """Return documents of a tiny vocabulary with long copied spans between and within them."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        words = [f"w{i}" for i in rng.integers(0, 400, rng.integers(0, 60))]
        for _ in range(rng.integers(0, 3)):
            if documents:
                other = documents[rng.integers(len(documents))]
                start = rng.integers(0, max(len(other) - 5, 1))
                place = rng.integers(0, len(words) + 1)
                words[place:place] = other[start : start + rng.integers(3, 30)]
        if rng.random() < 0.3:
            words += words[: rng.integers(0, 20)]
        documents.append(words)
    return documents


@pytest.mark.parametrize("run", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_equal_a_plain_search(seed, run):
    documents = corpus(seed)
    rank = np.random.default_rng(seed).permutation(len(documents))
    expected = brute(documents, rank, run)
    texts = [" ".join(words) for words in documents]
    for shards, windows in ((1, 1 << 24), (3, 1 << 24), (2, 97)):
        cleaned, found = cut(texts, "words", run, rank=rank, shards=shards, windows=windows)
        goes = [np.zeros(len(words), bool) for words in documents]
        for document, first, end in zip(*found, strict=True):
            goes[document][first:end] = True
        assert all((a == b).all() for a, b in zip(goes, expected, strict=True))
        for text, words, gone in zip(cleaned, documents, expected, strict=True):
            assert text.split() == [w for w, g in zip(words, gone, strict=True) if not g]


@pytest.mark.parametrize("seed", range(4))
def test_every_repeated_run_stays_somewhere(seed):
    documents, run = corpus(seed), 5
    texts = [" ".join(words) for words in documents]

    def windows(texts):
        found = {}
        for text in texts:
            words = text.split()
            for i in range(len(words) - run + 1):
                key = tuple(words[i : i + run])
                found[key] = found.get(key, 0) + 1
        return found

    before = windows(texts)
    after = windows(cut(texts, "words", run)[0])
    assert all(key in after for key, count in before.items() if count > 1)
    repeated = sum(count - 1 for count in before.values())
    assert sum(count - 1 for key, count in after.items() if key in before) < repeated / 3


def test_a_suffix_array_finds_the_same_repeats():
    """The longest repeats of a sorted list of all suffixes cover what `find` marks, and no more."""
    documents, run = corpus(7, 25), 6
    flat, limits = [], []
    for words in documents:
        flat += [*words, f"end{len(limits)}"]
        limits.append(len(flat))
    order = sorted(range(len(flat)), key=lambda i: flat[i:])
    repeated = set()
    for left, right in itertools.pairwise(order):
        common = 0
        while max(left, right) + common < len(flat) and flat[left + common] == flat[right + common]:
            common += 1
        for place in (left, right):
            repeated |= set(range(place, place + common)) if common >= run else set()
    starts = [0, *limits[:-1]]
    _, found = cut([" ".join(words) for words in documents], "words", run)
    marked = {starts[d] + i for d, a, b in zip(*found, strict=True) for i in range(a, b)}
    assert marked and marked <= repeated
    expected = brute(documents, np.arange(len(documents)), run)
    assert len(marked) == sum(int(goes.sum()) for goes in expected)


def test_documents_that_are_gone_hold_nothing():
    text = "one two three four five"
    cleaned, _ = cut([text, text, text], "words", 3, alive=[False, True, True])
    assert cleaned == [text, text, ""]
    cleaned, _ = cut([text, text], "words", 3, rank=[1, 0])
    assert cleaned == ["", text]


def test_characters_words_and_paragraphs_stay_whole():
    repeated = "Der Übergang – größer, 東京都に行く、naïve café 😀"
    texts = [f"Vor\u00a0{repeated} nach.", f"Ganz\n\n  anders {repeated}\n\n  weiter geht es"]
    cleaned, _ = cut(texts, "words", 8)
    assert cleaned[0] == texts[0]
    assert cleaned[1] == "Ganz\n\n  anders\n\n  weiter geht es"
    assert "".join(cleaned).encode("utf-8").decode("utf-8")


def test_lines_paragraphs_and_sentences():
    menu = "Home  |  About us  |  Contact the editors"
    texts = [f"{menu}\nFirst text of all.\nIts end.", f"Second text.\n  {menu.upper()}\n  more"]
    cleaned, _ = cut(texts, "lines", 1)
    assert cleaned == [texts[0], "Second text.\n  more"]
    block = "A block that\nspans two lines."
    cleaned, _ = cut([f"Begin.\n\n{block}\n\nEnd.", f"{block}\n \nOther."], "paragraphs", 1)
    assert cleaned == [f"Begin.\n\n{block}\n\nEnd.", "Other."]
    three = "It rained. Nobody came! Why?"
    texts = [f"{three} We went.", f"Then. {three}  And so.\n\nOn it went."]
    cleaned, _ = cut(texts, "sentences", 3)
    assert cleaned == [texts[0], "Then.  And so.\n\nOn it went."]


def test_short_windows_do_not_count():
    texts = ["Parameters\nalpha is first", "Parameters\nbeta is second"]
    assert cut(texts, "lines", 1)[0][1] == "beta is second"
    assert cut(texts, "lines", 1, min_chars=20)[0] == texts


def test_several_units_are_taken_out_together():
    text = "a b c d e f\nline two\n\nlast one here"
    cuts = [("words", 1, 3), ("lines", 1, 2), ("words", 2, 4)]
    assert units.without(text, cuts) == "a e f\n\nlast one here"
    assert units.without(text, [("paragraphs", 0, 2)]) == ""
    assert units.without(text, []) == text


def test_nothing_at_all():
    for texts in ([], [""], ["", "\n \n"]):
        cleaned, found = cut(texts, "words", 5)
        assert len(found.document) == 0 and len(cleaned) == len(texts)

# SPDX-License-Identifier: Apache-2.0
"""Words and shared views of documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.text import views


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's a well-known U.S. fact.", ["It's", "a", "well-known", "U.S", ".", "fact", "."]),
        ("a.b(c) == d...", ["a.b", "(", "c", ")", "==", "d", "..."]),
        ("# ## -- x_1 -> y", ["#", "##", "--", "x_1", "-", ">", "y"]),
        ("naïve l’été 3.14 – “q”", ["naïve", "l’été", "3.14", "–", "“", "q", "”"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert views.View(text, views.Vocabulary()).words == words


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_ascii_splitter_equals_the_unicode_one(text):
    assert views.WORD_ASCII.findall(text) == views.WORD.findall(text)


def test_views_are_made_once_per_text_and_again_when_it_changes():
    batch = [{"text": "one two"}, {"text": "two three"}]
    first = views.views(batch)
    assert all(a is b for a, b in zip(views.views(batch), first, strict=True))
    batch[0]["text"] = "four"
    again = views.views(batch)
    assert again[0].words == ["four"] and again[1] is first[1]


def test_a_full_vocabulary_starts_again(monkeypatch):
    monkeypatch.setattr(views, "VOCABULARY_LIMIT", 3)
    batch = [{"text": "alpha beta gamma delta epsilon"}]
    before = views.views(batch)[0].vocabulary
    later = [*batch, {"text": "alpha"}]
    found = views.views(later)
    assert found[0].vocabulary is found[1].vocabulary is not before
    assert found[0].ids[0] == found[1].ids[0]


def test_totals_and_properties():
    shared = views.Vocabulary()
    made = [views.View(text, shared) for text in ("the a1 ## 22", "", "of of")]
    words = views.Words(made)
    assert words.total(words.get("length")).tolist() == [9, 0, 4]
    assert words.total(words.get("letter")).tolist() == [2, 0, 2]
    assert words.total(words.get("symbol")).tolist() == [1, 0, 0]
    assert words.total(words.get("stop")).tolist() == [1, 0, 2]
    assert np.array_equal(words.owner, [0, 0, 0, 0, 2, 2])

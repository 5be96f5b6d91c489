# SPDX-License-Identifier: Apache-2.0
"""Shared runs of words against a count by plain sets of tuples."""

import json
import random
import re
import time

import pytest

from llm.corpus import decontaminate, filters
from llm.corpus.documents import Drop
from llm.errors import ConfigError, DataError
from llm.text.views import View, Vocabulary

WORDS = [f"{a}{b}" for a in ("sea", "har", "mor", "lan", "wet") for b in ("lo", "ti", "gu", "ren")]


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def brute_force(items, text, n=13):
    """Count runs of the text that an item holds; an item of 8 to 12 words counts whole."""
    known = set()
    for item in map(words, items):
        length = min(n, len(item))
        if length >= 8:
            known |= {tuple(item[i : i + length]) for i in range(len(item) - length + 1)}
    own = words(text)
    return sum(
        tuple(own[i : i + length]) in known
        for length in {len(run) for run in known}
        for i in range(len(own) - length + 1)
    )


def test_counts_are_those_of_a_plain_search():
    g = random.Random(0)

    def text(count):
        return " ".join(g.choices(WORDS, k=count))

    items = [text(g.randrange(3, 40)) for _ in range(60)]
    index = decontaminate.build(items)
    seen, documents = [], []
    for _ in range(300):
        parts = [text(g.randrange(5, 30))]
        if g.random() < 0.6:
            piece = words(g.choice(items))
            start = g.randrange(len(piece))
            parts.append(", ".join(piece[start : start + g.randrange(1, 40)]).upper() + "!")
        parts.append(text(g.randrange(1, 20)))
        document = " ".join(parts)
        expected = brute_force(items, document)
        seen.append(expected)
        documents.append(document)
    vocabulary = Vocabulary()
    found = decontaminate.counts(index, [View(d, vocabulary) for d in documents])
    assert found.tolist() == seen
    assert 30 < sum(e > 0 for e in seen) < 270


QUESTION = "Which of the seven harbour lamps was lit first on the evening of the great storm"


def judge(texts, **options):
    ((_, function),) = filters.build(("decontaminate",), decontaminate=options)
    made = [{"id": str(i), "source": "t", "meta": {}, "text": t} for i, t in enumerate(texts)]
    return function(made)


def test_the_filter_reads_any_fields(tmp_path):
    pier = {"deep": "The lamp at the end of the long old pier"}
    rows = [{"query": QUESTION, "choices": ["one", pier], "gold": 1}]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = str(tmp_path / "e.jsonl")
    texts = [
        f"Quiz night! {QUESTION.upper()}? Nobody knew.",
        "He saw the lamp at the end of the long, old pier and slept.",
        "Which of the seven harbour lamps was lit first on the morning of the great storm",
        "one",
    ]
    outcomes = judge(texts, eval_file=file)
    assert [isinstance(o, Drop) for o in outcomes] == [True, True, False, False]
    assert outcomes[0] == Drop("contaminated_e", 4, 0)
    assert not isinstance(judge(texts, eval_files=(file,), max_runs=4)[0], Drop)
    assert set(filters.hashes(("decontaminate",), decontaminate={"eval_files": (file,)})) == {
        "decontaminate.eval_files.0"
    }


def test_what_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no evaluation set"):
        judge(["x"])
    (tmp_path / "e.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="holds no text of 8 words"):
        judge(["x"], eval_file=str(tmp_path / "e.jsonl"))
    (tmp_path / "f.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match="line 1"):
        judge(["x"], eval_file=str(tmp_path / "f.jsonl"))


def test_a_megabyte_costs_little():
    index = decontaminate.build([QUESTION])
    view = View("of the " * 150_000, Vocabulary())
    start = time.process_time()
    decontaminate.counts(index, [view])
    assert time.process_time() - start < 2

# SPDX-License-Identifier: Apache-2.0
"""A language model's judgement noted in documents, and the filter that reads it."""

import json
import math

import pytest

from llm.corpus import filters
from llm.errors import DataError
from llm.eval import annotate
from llm.text import records

TEXTS = {"train": ["aaaa bbbb", "a naïve café — ok"], "validation": ["zzzz", "x" * 50]}


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split, texts in TEXTS.items():
        lines = [json.dumps({"id": f"{split}-{t[:2]}", "text": t, "url": "u"}) for t in texts]
        (folder / f"{split}-00000.jsonl").write_text("\n".join(lines))
    return folder


def test_every_document_is_noted_and_the_filter_reads_it(make_lm, corpus, tmp_path):
    lm, target = make_lm(), tmp_path / "noted"
    result = annotate.evaluate(lm, documents=str(corpus), target=str(target), max_bytes=40)
    found = list(records.read_documents(target))
    assert [d["text"] for d in found] == [t for texts in TEXTS.values() for t in texts]
    assert all(d["url"] == "u" for d in found) and result["n"] == 4
    for document in found:  # cut by bytes, not inside a character
        text = document["text"].encode()[:40].decode(errors="ignore")
        bits = -lm.text_logp(text) / math.log(2) / len(text.encode())
        assert document["meta"]["lm_bits_per_byte"] == pytest.approx(bits, abs=1e-4)
    assert [d["id"] for d in records.read_documents(target, "validation")] == [
        "validation-zz",
        "validation-xx",
    ]
    bits = sorted(d["meta"]["lm_bits_per_byte"] for d in found)
    ((_, rule),) = filters.build(["noted"], noted={"most": (bits[1] + bits[2]) / 2})
    kept, dropped = filters.apply(rule, found)
    assert sorted(d["meta"]["lm_bits_per_byte"] for d in kept) == bits[:2]
    assert {drop.reason for _, drop in dropped} == {"lm_bits_per_byte_high"}
    assert bits[0] <= result["metrics"]["decile_5"]["value"] <= bits[-1]


def test_written_shards_are_kept_until_something_changes(make_lm, corpus, tmp_path):
    target = tmp_path / "noted"
    options = {"documents": str(corpus), "target": str(target)}
    first = annotate.evaluate(make_lm(), **options)
    lm = make_lm()
    assert annotate.evaluate(lm, **options) == first and lm.calls == [1]
    (target / "train-00000.jsonl.gz").write_bytes(b"torn")
    lm = make_lm()
    assert annotate.evaluate(lm, **options) == first and lm.calls == [1, 2]
    lm = make_lm()
    annotate.evaluate(lm, **options, field="other")
    assert lm.calls == [1, 2, 2]


def test_a_document_without_the_number_is_named():
    ((_, rule),) = filters.build(["noted"], noted={"field": "score"})
    with pytest.raises(DataError, match=r"Document d7 has no number 'score'"):
        filters.apply(rule, [{"id": "d7", "text": "x", "meta": {"score": "high"}}])

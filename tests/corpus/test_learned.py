# SPDX-License-Identifier: Apache-2.0
"""The quality classifier and the perplexity model: learning, files, and what they refuse."""

import json
import random

import numpy as np
import pytest

from llm.corpus import filters, learned
from llm.corpus.documents import Drop
from llm.errors import ConfigError, DataError
from llm.text import ngrams
from llm.text.views import View, Vocabulary

PROSE = ("the harbour", "was quiet", "and the boats", "came home late", "before the storm",
         "nobody knew", "why she waited", "on the long pier", "with a lamp")  # fmt: skip
SPAM = ("buy now", "cheap pills", "click here", "the best", "free offer", "win money", "and more",
        "limited time", "order today")  # fmt: skip


def texts(phrases, count, seed):
    generator = random.Random(seed)
    return [" ".join(generator.choices(phrases, k=12)) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def classifier():
    return learned.train_classifier(texts(PROSE, 120, 0), texts(SPAM, 40, 1))


def test_the_classifier_tells_unseen_texts_apart(classifier):
    vocabulary = Vocabulary()
    good = [learned.probability(classifier, View(t, vocabulary)) for t in texts(PROSE, 50, 2)]
    bad = [learned.probability(classifier, View(t, vocabulary)) for t in texts(SPAM, 50, 3)]
    assert min(good) > 0.8 and max(bad) < 0.2


def test_training_is_deterministic_and_follows_the_gradient(classifier):
    again = learned.train_classifier(texts(PROSE, 120, 0), texts(SPAM, 40, 1))
    assert np.array_equal(again.weights, classifier.weights) and again.bias == classifier.bias
    # One step of Adagrad from zero moves every weight by the rate against its gradient's sign.
    one = learned.train_classifier(["alpha beta"], ["gamma delta"], epochs=1, rate=0.5)
    view = View("alpha beta", Vocabulary())
    places, values = learned.features(view)
    assert len(places) == 3 and np.linalg.norm(values) == pytest.approx(1)
    assert np.allclose(np.abs(one.weights[places]), 0.5, atol=1e-3)
    assert (one.weights[places] > 0).all()


def test_features_by_hand():
    places, values = learned.features(View("Sea sea SEA", Vocabulary()))
    # One word three times and one pair twice.
    raw = sorted([1 + np.log(3), 1 + np.log(2)])
    assert len(places) == 2
    assert sorted(values) == pytest.approx(raw / np.linalg.norm(raw), rel=1e-6)


def test_filters_read_what_training_wrote(tmp_path):
    for name, phrases in (("good", PROSE), ("bad", SPAM)):
        rows = [json.dumps({"text": t}) for t in texts(phrases, 60, 5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    good, bad = str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")
    assert learned.main(["quality", good, bad, str(tmp_path / "q.npz")]) == 0
    assert learned.main(["perplexity", good, str(tmp_path / "p.npz")]) == 0
    documents = [{"id": "a", "meta": {}, "text": texts(PROSE, 1, 9)[0]},
                 {"id": "b", "meta": {}, "text": texts(SPAM, 1, 9)[0]}]  # fmt: skip
    chain = filters.build(
        ("quality_model", "perplexity"),
        quality_model={"model": str(tmp_path / "q.npz")},
        perplexity={"model": str(tmp_path / "p.npz"), "max_bits": 2.0},
    )
    for _, function in chain:
        kept, dropped = function([dict(d) for d in documents])
        assert isinstance(dropped, Drop) and kept["id"] == "a"
    assert kept["meta"]["bits_per_byte"] < 2.0 < dropped.value
    stored = learned._load(str(tmp_path / "p.npz"), "perplexity")
    made = learned.train_perplexity(texts(PROSE, 60, 5))
    assert learned.bits_per_byte(stored, "the harbour") == learned.bits_per_byte(
        made, "the harbour"
    )
    hashes = filters.hashes(("perplexity",), perplexity={"model": str(tmp_path / "p.npz")})
    assert set(hashes) == {"perplexity.model"}


def test_bits_per_byte_is_the_models_own_measure():
    model = learned.train_perplexity(["abababab", "abab"], order=2)
    data = np.frombuffer(b"abba", np.uint8)
    # By the chain rule, one symbol at a time.
    bits = [-ngrams.log_probs(model, data[: i + 1])[-1] / np.log(2) for i in range(len(data))]
    assert learned.bits_per_byte(model, "abba") == pytest.approx(np.mean(bits))


def test_what_is_refused(tmp_path):
    document = [{"id": "a", "meta": {}, "text": "x"}]
    with pytest.raises(ConfigError, match="has no model"):
        learned.quality_model(document)
    (tmp_path / "m.npz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no model for the filter"):
        learned.perplexity(document, model=str(tmp_path / "m.npz"))
    with pytest.raises(DataError, match="no bad document"):
        learned.train_classifier(["a"], [])

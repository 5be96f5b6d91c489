# SPDX-License-Identifier: Apache-2.0
"""Classification: pooling, metrics against their definitions, rows, and a run that learns."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm
from llm import main, tokenizers
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.core.sharding import unbox
from llm.errors import ConfigError, DataError
from llm.generate import loading
from llm.models.config import TransformerConfig
from llm.models.pooling import pooled
from llm.models.transformer import Transformer
from llm.posttrain import classify, labels

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"fruit": ["apple", "pear", "plum"], "colour": ["red", "blue", "green"]}


def test_pooled_tokens():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    last, first = pooled(segments, True), pooled(segments, False)
    np.testing.assert_array_equal(last, [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(first, [[1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])


def test_f1_adds_up_to_its_definition():
    rng = np.random.default_rng(0)
    said, truth = rng.integers(0, 4, (2, 6, 5))
    weights = rng.integers(0, 2, (6, 5)).astype(np.float32)
    halves = [classify.f1_sums(said[i], truth[i], weights[i], 5) for i in (np.s_[:2], np.s_[2:])]
    total = jax.tree.map(jnp.add, *halves)
    kept = weights > 0
    for c in range(5):
        hit = (said[kept] == c) & (truth[kept] == c)
        wrong = (said[kept] == c) != (truth[kept] == c)
        value, weight = total[f"f1_{c}"]
        assert float(value) == 2 * hit.sum() and float(weight) == 2 * hit.sum() + wrong.sum()


def _model(head, **fields):
    return TransformerConfig(
        **{
            "vocab_size": tokenizers.load("byte").vocab_size,
            "n_layers": 1,
            "d_model": 32,
            "n_heads": 2,
            "d_ff": 64,
            "max_length": 64,
            "head": head,
            **fields,
        }
    )


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_packed_texts_count_once_each(architecture):
    made = Transformer(_model("sequence", architecture=architecture, n_classes=3, head_bias=True))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 200, (1, 12)).astype(np.int32)
    params = unbox(made.init(jax.random.key(0), tokens)["params"])
    params["classifier"]["kernel"] = rng.normal(size=(32, 3)).astype(np.float32)
    batch = {
        "tokens": tokens,
        "targets": np.repeat([[2, 1]], 6, axis=1).astype(np.int32),
        "weights": np.ones((1, 12), np.float32),
        "segments": np.repeat([[1, 2]], 6, axis=1).astype(np.int32),
        "positions": np.tile(np.arange(6), 2)[None].astype(np.int32),
    }
    sums = classify.classify(made).loss(params, (), batch, None)
    alone = made.apply({"params": params}, tokens.reshape(2, 6))
    picked = alone[:, -1 if architecture == "decoder" else 0]
    expected = -jax.nn.log_softmax(picked)[jnp.arange(2), jnp.array([2, 1])].sum()
    assert float(sums["loss"][1]) == 2
    np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-5)


def test_words_are_labelled_at_their_first_token():
    tokenizer = tokenizers.load("byte")
    record = {"tokens": ["ab", "c"], "labels": ["X", "Y"]}
    row = labels.example(record, tokenizer, {"X": 0, "Y": 1}, "record 0")
    ids = row["tokens"].tolist()
    assert ids == [ids[0], *tokenizer.encode("ab c"), tokenizer.eos_id]
    assert row["targets"].tolist() == [0, 0, 0, 1, 1, 0]
    assert row["weights"].tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, "no text and label"),
        ({"tokens": ["a"], "labels": []}, "one label per token"),
        ({"text": "x", "label": "Z"}, "not among X"),
    ],
)
def test_wrong_records_are_named(record, words):
    with pytest.raises(DataError, match=words):
        labels.example(record, tokenizers.load("byte"), {"X": 0}, "record 0")


def test_labels_are_sorted():
    records = [{"text": "", "label": x} for x in (10, 9, "b", "a")]
    assert labels.find_labels(records) == ["9", "10", "a", "b"]


def test_the_objective_wants_the_head():
    with pytest.raises(ConfigError, match="classification head"):
        classify.classify(Transformer(_model("linear")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tokenizer = tokenizers.load("byte")
    config = _model("linear")
    params = unbox(Transformer(config).init(jax.random.key(0), np.zeros((1, 8), int))["params"])
    place = tmp_path_factory.mktemp("base") / "base"
    loading.assemble(config, params, tokenizer, starts_texts=True).save(place)
    return place


def _run(workdir, base, data, **model):
    config = configs.load_file(str(ROOT / "configs" / "posttrain" / "classify_tiny.py"))
    config.init["from"] = str(base)
    config.data = {"source": "labels", "path": str(data), "length": 64, "validation": 0.2}
    config.model.update(model)
    config.train.update(steps=40, batch_size=16, eval_every=40, eval_first=False)
    config.schedule.peak = 1e-2
    config.checkpoint.every = 40
    main.train(config, str(workdir))
    return next(
        row
        for row in reversed(read_lines(workdir / "metrics.jsonl"))
        if "eval/validation/accuracy" in row
    )


def test_a_run_learns_texts_with_an_adapter(base, tmp_path):
    rng = np.random.default_rng(0)
    lines = [
        {"text": f"{rng.integers(100)} {rng.choice(words)} {rng.integers(100)}", "label": label}
        for label, words in WORDS.items()
        for _ in range(150)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in lines))
    adapter = {"name": "lora", "rank": 4, "alpha": 8.0}
    found = _run(tmp_path / "run", base, data, adapter=adapter)
    assert found["eval/validation/accuracy"] > 0.9
    assert found["eval/validation/macro_f1"] > 0.9
    lm = llm.load(str(tmp_path / "run"))
    assert lm.config.labels == ("colour", "fruit")
    answers = lm.classify(["7 apple 3", "12 blue 9"])
    assert [label for label, _ in answers] == ["fruit", "colour"]
    lm.save(tmp_path / "alone", format="adapter")
    again = llm.load(str(base), adapter=tmp_path / "alone")
    assert again.classify(["7 apple 3"])[0][0] == "fruit"
    with pytest.raises(ConfigError, match="decoders"):
        lm.generate("x")

# SPDX-License-Identifier: Apache-2.0
"""Distillation: a teacher beside the student or stored in the rows, and a run that follows it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import llm
from llm import main, tokenizers
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.core.sharding import unbox
from llm.data import prepare, rows
from llm.errors import ConfigError
from llm.generate import loading
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.train import distill, teacher

ROOT = Path(__file__).resolve().parents[2]
BYTE = tokenizers.load("byte")
CHATS = [{"question": f"say {i}", "answer": str(i)} for i in range(60)]


def _save(place, seed, layers, scale=1.0, vocab_size=BYTE.vocab_size):
    shape = TransformerConfig(
        vocab_size=vocab_size, n_layers=layers, d_model=32, n_heads=2, d_ff=64, max_length=64
    )
    params = unbox(Transformer(shape).init(jax.random.key(seed), np.zeros((1, 8), int))["params"])
    params = jax.tree.map(lambda p: p * scale, params)
    loading.assemble(shape, params, BYTE, starts_texts=True).save(place)
    return str(place)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student of one layer, and a teacher of two that is sure of itself."""
    place = tmp_path_factory.mktemp("models")
    return _save(place / "student", 0, 1), _save(place / "teacher", 1, 2, scale=3.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    chats = [
        {
            "messages": [
                {"role": "user", "content": c["question"]},
                {"role": "assistant", "content": c["answer"]},
            ]
        }
        for c in CHATS
    ]
    place = tmp_path_factory.mktemp("rows") / "train"
    prepare.prepare_chats(chats, BYTE, 48, place)
    return rows.open_rows(place)


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_stored_tokens_are_the_teacher(models, data, beta):
    student = llm.load(models[0])
    options = {"beta": beta, "temperature": 2.0}
    beside = distill.distill(student.model, teacher=models[1], sft_weight=0.3, **options)
    stored = distill.distill(student.model, chunk=12, sft_weight=0.3, **options)
    whole = {"source": models[1], "k": BYTE.vocab_size - 1, "temperature": 2.0}
    (made,) = teacher.with_teacher({"train": data}, BYTE.vocab_size, **whole).values()
    batch = made.take(np.arange(2))
    assert batch["topids"].shape == (2, 48, BYTE.vocab_size - 1)
    one = beside.loss(student.params, beside.given, batch, None)
    two = stored.loss(student.params, (), batch, None)
    for name in ("loss", "divergence", "nll"):
        np.testing.assert_allclose(one[name][0], two[name][0], rtol=1e-4)
        assert float(one[name][1]) == batch["weights"].sum()
    few = teacher.with_teacher({"train": data}, BYTE.vocab_size, **whole | {"k": 4})["train"]
    less = stored.loss(student.params, (), few.take(np.arange(2)), None)
    assert 0 < float(less["divergence"][0]) < float(two["divergence"][0])


def test_a_run_follows_its_teacher(models, tmp_path):
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, CHATS)))
    config = configs.load_file(str(ROOT / "configs" / "posttrain" / "distill.py"))
    config.init["from"] = models[0]
    config.objective.teacher = models[1]
    config.data.source = "chats"
    config.data.path = str(tmp_path / "chats.jsonl")
    config.data.length = 48
    config.data.validation = 0.2
    config.train.update(steps=30, batch_size=8, eval_every=30, log_every=10)
    config.schedule.peak = 1e-2
    config.checkpoint.every = 30
    main.train(config, str(tmp_path / "run"))
    key = "eval/validation/divergence"
    found = [r[key] for r in read_lines(tmp_path / "run" / "metrics.jsonl") if key in r]
    assert found[-1] < 0.5 * found[0]


def test_another_vocabulary_is_refused(models, tmp_path):
    student = llm.load(models[0])
    other = _save(tmp_path / "other", 0, 1, vocab_size=300)
    with pytest.raises(ConfigError, match="300 tokens"):
        distill.distill(student.model, teacher=other)
    with pytest.raises(ConfigError, match="k from 1"):
        teacher.with_teacher({}, 8, source=models[1], k=9)

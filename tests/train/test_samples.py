# SPDX-License-Identifier: Apache-2.0
"""Samples while training: the same questions at every look, and never a reason to stop."""

import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm import tokenizers
from llm.core.sharding import unbox
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.train import samples
from llm.train.step import Frozen

BYTE = tokenizers.load("byte")
SHAPE = TransformerConfig(
    vocab_size=BYTE.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=32
)


@pytest.fixture(scope="module")
def model():
    model = Transformer(SHAPE)
    params = unbox(model.init(jax.random.key(0), np.zeros((1, 8), int))["params"])
    return model, SimpleNamespace(params=params)


def hooks(model, workdir, **section):
    config = SimpleNamespace(sampling={"prompts": ("ab", "c"), "max_tokens": 4, **section})
    inputs = SimpleNamespace(model=model, tokenizer=BYTE)
    return samples.hooks(config, str(workdir), inputs, Frozen(None, None))


def test_the_same_prompts_are_continued_at_every_look(model, tmp_path):
    (hook,) = hooks(model[0], tmp_path, every=10)
    assert hook.every == 10 and hook.function(0, model[1]) == {}
    hook.function(10, model[1])
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [
        (0, "ab"), (0, "c"), (10, "ab"), (10, "c")
    ]  # fmt: skip
    assert [line["text"] for line in lines[:2]] == [line["text"] for line in lines[2:]]
    assert hooks(model[0], tmp_path, every=0) == []


def test_a_prompt_that_is_too_long_is_said_and_training_goes_on(model, tmp_path, caplog):
    (hook,) = hooks(model[0], tmp_path, every=10, prompts=("x" * 40,), chat=True)
    with caplog.at_level(logging.WARNING, "llm.samples"):
        assert hook.function(0, model[1]) == {}
    assert "32 positions" in caplog.text and not (tmp_path / "samples.jsonl").exists()

# SPDX-License-Identifier: Apache-2.0
"""A language model whose every number is known, and a real one of random weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.sharding import unbox
from llm.generate.language_model import LanguageModel
from llm.generate.loading import parameter_shapes
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.tokenizers.loading import load as load_tokenizer


class FakeTokenizer:
    """One token per UTF-8 byte."""

    def encode(self, text):
        return list(text.encode("utf-8"))

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


class FakeModel:
    """Byte b has probability proportional to 1 + (b mod 7); generation looks answers up."""

    def __init__(self, answers=None):
        self.tokenizer = FakeTokenizer()
        weights = 1.0 + np.arange(256) % 7
        self.logp = np.log(weights / weights.sum())
        self.answers = answers or {}
        self.calls = []

    def text_logp(self, text):
        return math.fsum(self.logp[b] for b in text.encode("utf-8"))

    def loglikelihood(self, pairs):
        self.calls.append(len(pairs))
        return [(self.text_logp(continuation), False) for _, continuation in pairs]

    def loglikelihood_rolling(self, texts):
        self.calls.append(len(texts))
        return [self.text_logp(text) for text in texts]

    def generate(self, prompts, **options):
        self.options = options
        return [self.answers.get(prompt, "") for prompt in prompts]


@pytest.fixture
def make_lm():
    """Return the class, so that a test can give the answers."""
    return FakeModel


@pytest.fixture(scope="session")
def tiny_lm():
    """Return a real model of random weights and byte tokens."""
    tokenizer = load_tokenizer("byte")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=64
    )
    model = Transformer(config)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.2, leaf.shape), jnp.float32),
        unbox(parameter_shapes(model)),
    )
    return LanguageModel(config, model, params, tokenizer, starts_texts=True)

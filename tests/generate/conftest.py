# SPDX-License-Identifier: Apache-2.0
"""A tiny random model with a byte tokenizer: its text is noise, but never the same noise."""

import dataclasses

import numpy as np
import pytest

from llm import tokenizers
from llm.core.sharding import unbox
from llm.core.trees import flatten, unflatten
from llm.generate import loading
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=272,
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    d_ff=64,
    max_length=64,
    tied_embeddings=False,
)


@pytest.fixture(scope="session")
def lm():
    tokenizer = tokenizers.load("byte")
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    shapes = flatten(unbox(loading.parameter_shapes(Transformer(config))))
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.3, leaf.shape) for name, leaf in sorted(shapes.items())}
    return loading.assemble(config, unflatten(params), tokenizer)

# SPDX-License-Identifier: Apache-2.0
"""A small trained-looking model: random, with weights large enough to have opinions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.compress import quantize
from llm.core.sharding import unbox
from llm.generate.language_model import LanguageModel
from llm.generate.loading import parameter_shapes
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.tokenizers.loading import load as load_tokenizer


def random_parameters(model, scale=0.1):
    """Draw parameters with NumPy: no program has to be compiled for that."""
    generator = np.random.default_rng(0)
    shapes = unbox(parameter_shapes(model))
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, scale, leaf.shape), jnp.float32), shapes
    )


@pytest.fixture(scope="session")
def lm():
    tokenizer = load_tokenizer("byte")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        d_ff=64,
        max_length=64,
        tied_embeddings=False,
    )
    model = Transformer(config)
    params = random_parameters(model)
    return LanguageModel(config, model, params, tokenizer, starts_texts=True, step=7)


@pytest.fixture(scope="session")
def axes(lm):
    return quantize.parameter_axes(lm.model)

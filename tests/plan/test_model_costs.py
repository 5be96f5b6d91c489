# SPDX-License-Identifier: Apache-2.0
"""Parameter counts from formulas against the real model's shapes."""

import jax
import jax.numpy as jnp
import pytest

from llm.core import trees
from llm.core.sharding import unbox
from llm.models import presets
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.plan import model_costs

PRESETS = (
    "tiny",
    "gpt2_124m",
    "pythia_70m",
    "opt_125m",
    "llama31_8b",
    "mixtral_8x7b",
    "qwen25_0.5b",
    "qwen3_30b_a3b",
    "gemma3_4b",
    "olmo2_7b",
    "bert_base",
    "t5_v1_1_base",
)
VARIANTS = (
    {"attention_sinks": True, "qk_norm": "full", "norm": "layernorm"},
    {"mlp_bias": True, "attention_bias": True, "attention_out_bias": True, "head_bias": True},
    {"parallel_block": "shared_norm", "n_kv_heads": 1, "activation": "relu2"},
    {"n_experts": 4, "n_shared_experts": 2, "d_expert": 24, "mlp_bias": True},
    {"architecture": "encoder", "head": "mlm", "pooler": True, "token_types": 2},
    {"architecture": "encoder_decoder", "n_encoder_layers": 3, "position": "t5"},
)


def real(config: TransformerConfig) -> int:
    model = Transformer(config)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    )
    return trees.count(unbox(shapes))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    config = presets.config(name)
    assert model_costs.count(config) == real(config)


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: next(iter(fields)))
def test_variants(fields):
    config = TransformerConfig(**{"d_model": 32, "tied_embeddings": False, **fields}).validate()
    assert model_costs.count(config) == real(config)


def test_parts_of_llama_2_7b():
    parts = model_costs.by_part(presets.config("llama2_7b"))
    assert parts == {
        "embedding": 32000 * 4096,
        "attention": 32 * 4 * 4096 * 4096,
        "mlp": 32 * 3 * 4096 * 11008,
        "norms": 65 * 4096,
        "head": 32000 * 4096,
    }

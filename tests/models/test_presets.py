# SPDX-License-Identifier: Apache-2.0
"""Presets against the parameter counts their authors publish, and clear refusals."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import ConfigError
from llm.models.config import TransformerConfig
from llm.models.presets import PRESETS, config
from llm.models.transformer import Transformer

# Parameters of the published weights, tied tensors once (the total in the safetensors metadata of
# each model's page); encoders with their masked-language-model head.
PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1.5b": 1_557_611_200,
    "pythia_70m": 70_426_624,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632,
    "pythia_1.4b": 1_414_647_808,
    "pythia_2.8b": 2_775_208_960,
    "pythia_6.9b": 6_857_302_016,
    "pythia_12b": 11_846_072_320,
    "opt_125m": 125_239_296,
    "opt_1.3b": 1_315_758_080,
    "opt_6.7b": 6_658_473_984,
    "starcoder2_3b": 3_030_371_328,
    "starcoder2_7b": 7_173_923_840,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "llama31_405b": 405_853_388_800,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v0.3": 7_248_023_552,
    "mixtral_8x7b": 46_702_792_704,
    "llama33_70b": 70_553_706_496,
    "qwen2_0.5b": 494_032_768,
    "qwen2_1.5b": 1_543_714_304,
    "qwen2_7b": 7_615_616_512,
    "qwen2_72b": 72_706_203_648,
    "qwen25_0.5b": 494_032_768,
    "qwen25_1.5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "qwen25_14b": 14_770_033_664,
    "qwen25_32b": 32_763_876_352,
    "qwen25_72b": 72_706_203_648,
    "qwen15_moe_a2.7b": 14_315_784_192,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "phi3_mini": 3_821_079_552,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "bert_tiny": 4_385_920 + 47_290,  # the released encoder with its pooler, and the MLM head
    "bert_base": 109_514_298,  # without the pooler
    "bert_large": 335_174_458,
    "roberta_base": 124_697_433,
    "distilbert": 66_985_530,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "flan_t5_small": 76_961_152,
    "flan_t5_base": 247_577_856,
    "flan_t5_large": 783_150_080,
}


def _count(name: str) -> int:
    tokens = jnp.zeros((1, 8), jnp.int32)
    model = Transformer(config(name))
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_count_is_the_published_one(name):
    assert _count(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(PUBLISHED)))
def test_own_presets_build(name):
    assert _count(name) > 0


def test_own_sizes_are_what_their_names_say():
    for name, size in {"1m": 1e6, "5m": 5e6, "15m": 15e6, "50m": 50e6}.items():
        assert 0.8 * size < _count(name) < 1.25 * size, name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads=3"),
        ({"d_model": 65}, "d_model=65"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"activation": "swigla"}, "Did you mean 'swiglu'"),
        ({"attention": "flash"}, "model.attention"),
        ({"rope_scaling": "yarn"}, "rope_original_length"),
        ({"window": 4, "window_pattern": "LX"}, "LX"),
        ({"n_experts": 2, "experts_per_token": 3}, "experts_per_token=3"),
        ({"vocab_sise": 4}, "vocab_size"),
        ({"n_layers": 0}, "n_layers=0"),
        ({"n_layers": 10**9}, "n_layers=1000000000"),
        ({"n_layers": True}, "n_layers=True is not a whole number"),
        ({"d_model": "64"}, "d_model='64' is not a whole number"),
        ({"rope_theta": float("inf")}, "rope_theta=inf is not a finite number"),
    ],
)
def test_a_wrong_field_is_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        config("tiny", **fields)


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(ConfigError, match="gpt2_124m"):
        config("gpt2_124")


def test_length_beyond_learned_positions_is_refused():
    model = Transformer(config("tiny", position="learned", max_length=4))
    with pytest.raises(ConfigError, match="4 learned positions"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))


def test_derived_sizes():
    c = TransformerConfig(d_model=96, n_heads=6)
    assert (c.n_kv_heads, c.head_dim, c.d_ff) == (6, 16, 384)


def test_config_and_presets_do_not_import_jax():
    code = "import sys, llm.models.presets; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

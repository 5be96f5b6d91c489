# SPDX-License-Identifier: Apache-2.0
"""Named models: `config("smollm2_135m", dtype="bfloat16")`. No JAX.

A family holds what its members share; a preset adds its sizes. Parameter counts are checked
against the published ones in the tests.
"""

from typing import Any

from llm.errors import unknown
from llm.models.config import TransformerConfig, from_dict

Fields = dict[str, Any]

_GPT2: Fields = {
    "vocab_size": 50257,
    "max_length": 1024,
    "norm": "layernorm",
    "position": "learned",
    "activation": "gelu_tanh",
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "init": "normal",
}
_NEOX: Fields = {
    "max_length": 2048,
    "norm": "layernorm",
    "rope_partial": 0.25,
    "activation": "gelu",
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "parallel_block": "two_norms",
    "tied_embeddings": False,
}
_OPT: Fields = {**_GPT2, "vocab_size": 50272, "max_length": 2048, "position_offset": 2}
_OPT["activation"] = "relu"
_STARCODER2: Fields = {
    "vocab_size": 49152,
    "max_length": 16384,
    "norm": "layernorm",
    "rope_theta": 999_999.4420358813,
    "activation": "gelu_tanh",
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "window": 4096,
}
_LLAMA2: Fields = {"vocab_size": 32000, "max_length": 4096, "tied_embeddings": False}
_LLAMA3: Fields = {
    "vocab_size": 128256,
    "max_length": 8192,
    "rope_theta": 500_000.0,
    "tied_embeddings": False,
}
_LLAMA31: Fields = {
    **_LLAMA3,
    "max_length": 131072,
    "rope_scaling": "llama3",
    "rope_factor": 8.0,
    "rope_original_length": 8192,
}
_SMOLLM2: Fields = {"vocab_size": 49152, "max_length": 8192, "rope_theta": 100_000.0}
_MISTRAL: Fields = {
    "vocab_size": 32000,
    "max_length": 32768,
    "n_layers": 32,
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 8,
    "d_ff": 14336,
    "tied_embeddings": False,
}
_QWEN25: Fields = {
    "max_length": 32768,
    "norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "attention_bias": True,
}
_QWEN3: Fields = {
    "vocab_size": 151936,
    "max_length": 40960,
    "norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "head_dim": 128,
    "n_kv_heads": 8,
    "qk_norm": "head",
}
_QWEN_MOE: Fields = {
    **_QWEN25,
    "vocab_size": 151936,
    "tied_embeddings": False,
    "shared_expert_gate": True,
    "router_normalize": False,
}
_GEMMA: Fields = {
    "max_length": 8192,
    "norm_eps": 1e-6,
    "norm_unit_offset": True,
    "activation": "geglu_tanh",
    "head_dim": 256,
}
_GEMMA2: Fields = {
    **_GEMMA,
    "vocab_size": 256000,
    "norm_placement": "sandwich",
    "attention_softcap": 50.0,
    "logit_softcap": 30.0,
    "window": 4096,
    "window_pattern": "LG",
}
_GEMMA3: Fields = {
    **_GEMMA,
    "vocab_size": 262144,
    "max_length": 32768,
    "norm_placement": "sandwich",
    "qk_norm": "head",
    "window": 512,
    "window_pattern": "LLLLLG",
    "rope_theta": 1_000_000.0,
    "rope_local_theta": 10_000.0,
}
_GEMMA3_LONG: Fields = {
    **_GEMMA3,
    "vocab_size": 262208,
    "max_length": 131072,
    "window": 1024,
    "rope_scaling": "linear",
    "rope_factor": 8.0,
}
_OLMO2: Fields = {
    "vocab_size": 100352,
    "max_length": 4096,
    "norm_eps": 1e-6,
    "norm_placement": "output",
    "qk_norm": "full",
    "rope_theta": 500_000.0,
    "tied_embeddings": False,
}
_BERT: Fields = {
    "architecture": "encoder",
    "vocab_size": 30522,
    "max_length": 512,
    "norm": "layernorm",
    "norm_eps": 1e-12,
    "norm_placement": "post",
    "embed_norm": True,
    "final_norm": False,
    "position": "learned",
    "activation": "gelu",
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "head": "mlm",
    "head_bias": True,
    "token_types": 2,
}
_T5: Fields = {
    "architecture": "encoder_decoder",
    "vocab_size": 32128,
    "max_length": 512,
    "norm_eps": 1e-6,
    "position": "t5",
    "attention_scale": 1.0,
    "activation": "relu",
    "head_dim": 64,
    "init": "fan_in",
}
_T5_V1_1: Fields = {**_T5, "activation": "geglu_tanh", "tied_embeddings": False}


def _sizes(layers: int, model: int, heads: int, ff: int = 0, kv: int = 0, **more: Any) -> Fields:
    fields = {"n_layers": layers, "d_model": model, "n_heads": heads, **more}
    if ff:
        fields["d_ff"] = ff
    if kv:
        fields["n_kv_heads"] = kv
    return fields


def _tied(fields: Fields) -> Fields:
    return {**fields, "tied_embeddings": True}


def _untied(fields: Fields) -> Fields:
    return {**fields, "tied_embeddings": False}


def _gemma(family: Fields, layers: int, model: int, heads: int, ff: int, kv: int, **more: Any):
    sizes = _sizes(layers, model, heads, ff, kv, embed_scale=float(model) ** 0.5, **more)
    return {**family, **sizes}


PRESETS: dict[str, Fields] = {
    # Ours, in the modern shape (RMSNorm, RoPE, SwiGLU, tied); sizes at vocab_size 4096.
    "tiny": {"vocab_size": 512, "max_length": 256, **_sizes(2, 64, 4, 192, 2)},
    "1m": {"vocab_size": 4096, "max_length": 512, **_sizes(4, 128, 4, 256, 2)},
    "5m": {"vocab_size": 4096, "max_length": 1024, **_sizes(6, 256, 4, 704, 2)},
    "15m": {"vocab_size": 4096, "max_length": 1024, **_sizes(8, 384, 6, 1024, 2)},
    "50m": {"vocab_size": 16384, "max_length": 2048, **_sizes(10, 576, 9, 1536, 3)},
    # GPT-2
    "gpt2_124m": {**_GPT2, **_sizes(12, 768, 12)},
    "gpt2_355m": {**_GPT2, **_sizes(24, 1024, 16)},
    "gpt2_774m": {**_GPT2, **_sizes(36, 1280, 20)},
    "gpt2_1.5b": {**_GPT2, **_sizes(48, 1600, 25)},
    # Pythia
    "pythia_70m": {**_NEOX, **_sizes(6, 512, 8), "vocab_size": 50304},
    "pythia_160m": {**_NEOX, **_sizes(12, 768, 12), "vocab_size": 50304},
    "pythia_410m": {**_NEOX, **_sizes(24, 1024, 16), "vocab_size": 50304},
    "pythia_1b": {**_NEOX, **_sizes(16, 2048, 8), "vocab_size": 50304},
    "pythia_1.4b": {**_NEOX, **_sizes(24, 2048, 16), "vocab_size": 50304},
    "pythia_2.8b": {**_NEOX, **_sizes(32, 2560, 32), "vocab_size": 50304},
    "pythia_6.9b": {**_NEOX, **_sizes(32, 4096, 32), "vocab_size": 50432},
    "pythia_12b": {**_NEOX, **_sizes(36, 5120, 40), "vocab_size": 50688},
    # OPT
    "opt_125m": {**_OPT, **_sizes(12, 768, 12)},
    "opt_1.3b": {**_OPT, **_sizes(24, 2048, 32)},
    "opt_6.7b": {**_OPT, **_sizes(32, 4096, 32)},
    # StarCoder 2
    "starcoder2_3b": {**_STARCODER2, **_sizes(30, 3072, 24, 12288, 2)},
    "starcoder2_7b": {**_STARCODER2, **_sizes(32, 4608, 36, 18432, 4), "rope_theta": 1_000_000.0},
    # SmolLM2
    "smollm2_135m": {**_SMOLLM2, **_sizes(30, 576, 9, 1536, 3)},
    "smollm2_360m": {**_SMOLLM2, **_sizes(32, 960, 15, 2560, 5)},
    "smollm2_1.7b": {**_SMOLLM2, **_sizes(24, 2048, 32, 8192), "rope_theta": 130_000.0},
    # Llama
    "llama2_7b": {**_LLAMA2, **_sizes(32, 4096, 32, 11008)},
    "llama2_13b": {**_LLAMA2, **_sizes(40, 5120, 40, 13824)},
    "llama2_70b": {**_LLAMA2, **_sizes(80, 8192, 64, 28672, 8)},
    "llama3_8b": {**_LLAMA3, **_sizes(32, 4096, 32, 14336, 8)},
    "llama3_70b": {**_LLAMA3, **_sizes(80, 8192, 64, 28672, 8)},
    "llama31_8b": {**_LLAMA31, **_sizes(32, 4096, 32, 14336, 8)},
    "llama31_70b": {**_LLAMA31, **_sizes(80, 8192, 64, 28672, 8)},
    "llama31_405b": {**_LLAMA31, **_sizes(126, 16384, 128, 53248, 8)},
    "llama32_1b": {**_tied(_LLAMA31), **_sizes(16, 2048, 32, 8192, 8), "rope_factor": 32.0},
    "llama32_3b": {**_tied(_LLAMA31), **_sizes(28, 3072, 24, 8192, 8), "rope_factor": 32.0},
    "llama33_70b": {**_LLAMA31, **_sizes(80, 8192, 64, 28672, 8)},
    # Mistral
    "mistral_7b": {**_MISTRAL, "window": 4096},  # v0.1
    "mistral_7b_v0.3": {**_MISTRAL, "vocab_size": 32768, "rope_theta": 1_000_000.0},
    "mixtral_8x7b": {**_MISTRAL, "n_experts": 8, "rope_theta": 1_000_000.0},
    # Qwen 2 and 2.5
    "qwen2_0.5b": {**_QWEN25, **_sizes(24, 896, 14, 4864, 2), "vocab_size": 151936},
    "qwen2_1.5b": {**_QWEN25, **_sizes(28, 1536, 12, 8960, 2), "vocab_size": 151936},
    "qwen2_7b": {**_untied(_QWEN25), **_sizes(28, 3584, 28, 18944, 4), "vocab_size": 152064},
    "qwen2_72b": {**_untied(_QWEN25), **_sizes(80, 8192, 64, 29568, 8), "vocab_size": 152064},
    "qwen25_0.5b": {**_QWEN25, **_sizes(24, 896, 14, 4864, 2), "vocab_size": 151936},
    "qwen25_1.5b": {**_QWEN25, **_sizes(28, 1536, 12, 8960, 2), "vocab_size": 151936},
    "qwen25_3b": {**_QWEN25, **_sizes(36, 2048, 16, 11008, 2), "vocab_size": 151936},
    "qwen25_7b": {**_untied(_QWEN25), **_sizes(28, 3584, 28, 18944, 4), "vocab_size": 152064},
    "qwen25_14b": {**_untied(_QWEN25), **_sizes(48, 5120, 40, 13824, 8), "vocab_size": 152064},
    "qwen25_32b": {**_untied(_QWEN25), **_sizes(64, 5120, 40, 27648, 8), "vocab_size": 152064},
    "qwen25_72b": {**_untied(_QWEN25), **_sizes(80, 8192, 64, 29568, 8), "vocab_size": 152064},
    # Qwen 3
    "qwen3_0.6b": {**_QWEN3, **_sizes(28, 1024, 16, 3072)},
    "qwen3_1.7b": {**_QWEN3, **_sizes(28, 2048, 16, 6144)},
    "qwen3_4b": {**_QWEN3, **_sizes(36, 2560, 32, 9728)},
    "qwen3_8b": {**_untied(_QWEN3), **_sizes(36, 4096, 32, 12288)},
    "qwen3_14b": {**_untied(_QWEN3), **_sizes(40, 5120, 40, 17408)},
    "qwen3_32b": {**_untied(_QWEN3), **_sizes(64, 5120, 64, 25600)},
    "qwen3_30b_a3b": {
        **_untied(_QWEN3),
        **_sizes(48, 2048, 32, 6144, 4, n_experts=128, experts_per_token=8, d_expert=768),
    },
    "qwen3_235b_a22b": {
        **_untied(_QWEN3),
        **_sizes(94, 4096, 64, 12288, 4, n_experts=128, experts_per_token=8, d_expert=1536),
    },
    # Qwen 1.5, mixture of experts (model_type qwen2_moe)
    "qwen15_moe_a2.7b": {
        **_QWEN_MOE,
        **_sizes(24, 2048, 16, 5632, experts_per_token=4, d_expert=1408, n_shared_experts=4),
        "n_experts": 60,
        "max_length": 8192,
    },
    # Gemma (text)
    "gemma_2b": _gemma(_GEMMA, 18, 2048, 8, 16384, 1, vocab_size=256000),
    "gemma_7b": _gemma(_GEMMA, 28, 3072, 16, 24576, 16, vocab_size=256000),
    "gemma2_2b": _gemma(_GEMMA2, 26, 2304, 8, 9216, 4),
    "gemma2_9b": _gemma(_GEMMA2, 42, 3584, 16, 14336, 8),
    "gemma2_27b": _gemma(
        _GEMMA2, 46, 4608, 32, 36864, 16, head_dim=128, attention_scale=144.0**-0.5
    ),
    "gemma3_270m": _gemma(_GEMMA3, 18, 640, 4, 2048, 1),
    "gemma3_1b": _gemma(_GEMMA3, 26, 1152, 4, 6912, 1),
    "gemma3_4b": _gemma(_GEMMA3_LONG, 34, 2560, 8, 10240, 4),
    "gemma3_12b": _gemma(_GEMMA3_LONG, 48, 3840, 16, 15360, 8),
    "gemma3_27b": _gemma(
        _GEMMA3_LONG, 62, 5376, 32, 21504, 16, head_dim=128, attention_scale=168.0**-0.5
    ),
    # Phi-3
    "phi3_mini": {
        **_LLAMA2,
        **_sizes(32, 3072, 32, 8192),
        "vocab_size": 32064,
        "window": 2047,
    },
    # OLMo 2
    "olmo2_1b": {**_OLMO2, **_sizes(16, 2048, 16, 8192)},
    "olmo2_7b": {**_OLMO2, **_sizes(32, 4096, 32, 11008)},
    "olmo2_13b": {**_OLMO2, **_sizes(40, 5120, 40, 13824)},
    # Encoders
    "bert_tiny": {**_BERT, **_sizes(2, 128, 2), "pooler": True},
    "bert_base": {**_BERT, **_sizes(12, 768, 12)},
    "bert_large": {**_BERT, **_sizes(24, 1024, 16)},
    "roberta_base": {
        **_BERT,
        **_sizes(12, 768, 12),
        "vocab_size": 50265,
        "norm_eps": 1e-5,
        "position_offset": 2,
        "token_types": 1,
    },
    "distilbert": {**_BERT, **_sizes(6, 768, 12), "token_types": 0},
    # Encoder-decoders; v1.0 scales its tied logits by d_model ** -0.5
    "t5_small": {**_T5, **_sizes(6, 512, 8, 2048), "logit_scale": 512.0**-0.5},
    "t5_base": {**_T5, **_sizes(12, 768, 12, 3072), "logit_scale": 768.0**-0.5},
    "t5_large": {**_T5, **_sizes(24, 1024, 16, 4096), "logit_scale": 1024.0**-0.5},
    "t5_v1_1_small": {**_T5_V1_1, **_sizes(8, 512, 6, 1024)},
    "t5_v1_1_base": {**_T5_V1_1, **_sizes(12, 768, 12, 2048)},
    "t5_v1_1_large": {**_T5_V1_1, **_sizes(24, 1024, 16, 2816)},
    "flan_t5_small": {**_T5_V1_1, **_sizes(8, 512, 6, 1024)},
    "flan_t5_base": {**_T5_V1_1, **_sizes(12, 768, 12, 2048)},
    "flan_t5_large": {**_T5_V1_1, **_sizes(24, 1024, 16, 2816)},
}


def config(name: str, **overrides: Any) -> TransformerConfig:
    """Return a preset's checked config with some fields replaced.

    Overriding a size leaves the ones derived from it derived: `config("1m", n_heads=8)`.

    Raises:
        ConfigError: no such preset or field, or values that do not fit together.
    """
    if name not in PRESETS:
        raise unknown("model preset", name, list(PRESETS))
    return from_dict({**PRESETS[name], **overrides})

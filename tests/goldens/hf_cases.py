# SPDX-License-Identifier: Apache-2.0
"""Tiny Hugging Face models of every family: configs, seeded weights and inputs.

Shared by the script that makes the golden numbers (with torch and transformers) and by the tests
(without): weights are functions of a tensor's name and shape, so none are stored.
"""

import hashlib
import re

import numpy as np

V, B, T = 64, 2, 12
LENGTHS = (12, 7)  # real tokens per row
GENERATED = 10  # tokens that encoder-decoders continue greedily

_LLAMA = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GEMMA = {**_LLAMA, "head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 5}
_T5 = {
    "vocab_size": V,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0}

# case -> config.json; "model_type" chooses the class.
CASES: dict[str, dict] = {
    "llama": {"model_type": "llama", **_LLAMA, "tie_word_embeddings": True},
    "llama2": {"model_type": "llama", **_LLAMA, "num_key_value_heads": 4},
    "smollm2": {
        "model_type": "llama",
        **_LLAMA,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
    "llama3": {"model_type": "llama", **_LLAMA, "rope_parameters": _LLAMA3_ROPE},
    "llama_yarn": {
        "model_type": "llama",
        **_LLAMA,
        "rope_parameters": _YARN,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_linear": {"model_type": "llama", **_LLAMA, "rope_parameters": _LINEAR},
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 4},
    "mixtral": {"model_type": "mixtral", **_LLAMA, "num_local_experts": 4},
    "qwen2": {"model_type": "qwen2", **_LLAMA, "tie_word_embeddings": True},
    "qwen2_window": {
        "model_type": "qwen2",
        **_LLAMA,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **_LLAMA,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 48,
    },
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 16},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_LLAMA,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "gemma": {"model_type": "gemma", **_LLAMA, "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {"model_type": "gemma2", **_GEMMA},
    "gemma3": {
        "model_type": "gemma3_text",
        **_GEMMA,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {**_LINEAR, "rope_theta": 10000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "phi3": {"model_type": "phi3", **_LLAMA, "sliding_window": 6},
    "olmo2": {"model_type": "olmo2", **_LLAMA},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": V,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt_neox": {"model_type": "gpt_neox", **_BERT, "bos_token_id": 1, "eos_token_id": 2},
    "starcoder2": {"model_type": "starcoder2", **_LLAMA, "sliding_window": 6},
    "opt": {
        "model_type": "opt",
        "vocab_size": V,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
    },
    "bert": {"model_type": "bert", **_BERT},
    "roberta": {"model_type": "roberta", **_BERT, "pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": V,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 64,
    },
    "t5": {"model_type": "t5", **_T5},
    "t5_v1_1": {
        "model_type": "t5",
        **_T5,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}


# case -> what docs/models.md calls it
TITLES = {
    "llama": "Llama (grouped heads, tied)",
    "llama2": "Llama 2",
    "smollm2": "SmolLM2",
    "llama3": "Llama 3, 3.1, 3.2, 3.3 (rotary scaling)",
    "llama_yarn": "Llama with YaRN and biases",
    "llama_linear": "Llama with linear rotary scaling",
    "mistral": "Mistral (sliding window)",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen2_window": "Qwen2 with windows in some layers",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-MoE",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3-MoE",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3 (text)",
    "phi3": "Phi-3",
    "olmo2": "OLMo 2",
    "gpt2": "GPT-2",
    "gpt_neox": "GPT-NeoX, Pythia",
    "starcoder2": "StarCoder 2",
    "opt": "OPT",
    "bert": "BERT",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
    "t5": "T5 v1.0",
    "t5_v1_1": "T5 v1.1, Flan-T5",
}


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 array that a name and shape stand for.

    Matrices keep activations near unit size; norm scales are near one, biases near zero.
    """
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    x = np.random.default_rng(seed).standard_normal(shape)
    if len(shape) > 1:
        embedding = any(word in name for word in ("embed", "wte", "wpe", "shared"))
        return (x * (0.5 if embedding else shape[-1] ** -0.5)).astype(np.float32)
    offset = 1.0 if name.endswith("weight") else 0.0
    return (offset + 0.1 * x).astype(np.float32)


# The three tensors of a family whose whole gradients are kept: embedding, first query projection,
# and the last layer's feed-forward output (with experts: its router).
CHOSEN = (
    r".*(embed_tokens|wte|embed_in|word_embeddings|shared)\.weight",
    r".*\.0\..*(q_proj|qkv_proj|c_attn|query_key_value|query|q_lin|SelfAttention\.q)\.weight",
    r".*\.(down_proj|mlp\.c_proj|dense_4h_to_h|fc2|output\.dense|lin2|DenseReluDense\.wo|"
    r"block_sparse_moe\.gate|mlp\.gate)\.weight",
)


def chosen(names: list[str]) -> list[str]:
    """Return the three tensors whose gradients are compared entry by entry."""
    found = []
    for place, pattern in enumerate(CHOSEN):
        fits = [name for name in names if re.fullmatch(pattern, name)]
        routers = [name for name in fits if name.endswith("gate.weight")]
        fits = [name for name in routers or fits if "attention.output" not in name]
        found.append(sorted(fits)[0 if place < 2 else -1])
    return found


def tokens() -> np.ndarray:
    """Return input ids [B, T]; beyond each row's length they are padding (id 0)."""
    ids = np.random.default_rng(0).integers(3, V, size=(B, T))
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
    return ids


def decoder_tokens() -> np.ndarray:
    """Return the decoder's input ids [B, T] of encoder-decoders."""
    return np.random.default_rng(1).integers(3, V, size=(B, T))


def mask() -> np.ndarray:
    """Return 1 where a token is real, [B, T]."""
    return (np.arange(T)[None] < np.array(LENGTHS)[:, None]).astype(np.int32)


def loss_mask(both: bool) -> np.ndarray:
    """Return bool [B, T]: positions whose logits mean something; all of a decoder side's."""
    return np.ones((B, T), bool) if both else mask() > 0


def loss_weights() -> np.ndarray:
    """Return the direction [B, T, V] whose inner product with the logits is the test loss."""
    return seeded("loss", (B, T, V)) * mask()[:, :, None]

# SPDX-License-Identifier: Apache-2.0
"""Tiny Hugging Face models of every family: configs, seeded weights and inputs.

Shared by the script that makes the golden numbers (with torch and transformers) and by the tests
(without): weights are functions of a tensor's name and shape, so none are stored.
"""

import hashlib

import numpy as np

V, B, T = 64, 2, 12
LENGTHS = (12, 7)  # real tokens per row

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
    "phi3": {"model_type": "phi3", **_LLAMA},
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


def loss_weights() -> np.ndarray:
    """Return the direction [B, T, V] whose inner product with the logits is the test loss."""
    return seeded("loss", (B, T, V)) * mask()[:, :, None]

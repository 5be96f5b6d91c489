# SPDX-License-Identifier: Apache-2.0
"""`config.json` of the encoders and encoder-decoders; see `hf_config`. No JAX."""

from llm.models.config import GATED, TransformerConfig
from llm.models.hf_reader import (
    BIASED_LAYERNORM,
    Fields,
    Reader,
    activation,
    hf_activation,
    hf_sizes,
    sizes,
)

_ENCODER: Fields = {
    "architecture": "encoder",
    "norm_placement": "post",
    "embed_norm": True,
    "final_norm": False,
    "position": "learned",
    "head": "mlm",
    "head_bias": True,
    "tied_embeddings": True,
    **BIASED_LAYERNORM,
}


def read_bert(r: Reader, offset: int = 0, default_eps: float = 1e-12) -> Fields:
    """Read BERT's fields; RoBERTa's positions start at `offset`."""
    r.expect(position_embedding_type="absolute", add_cross_attention=False)
    r.expect(tie_word_embeddings=True)
    return {
        **sizes(r),
        **_ENCODER,
        "max_length": r.get("max_position_embeddings", 512) - offset,
        "position_offset": offset,
        "norm_eps": r.get("layer_norm_eps", default_eps),
        "activation": activation(r.get("hidden_act", "gelu"), gated=False),
        "token_types": r.get("type_vocab_size", 2),
        "pooler": any(name.endswith("pooler.dense.weight") for name in r.tensors),
    }


def read_roberta(r: Reader) -> Fields:
    """Read RoBERTa's fields."""
    return read_bert(r, offset=r.get("pad_token_id", 1) + 1)


def write_bert(c: TransformerConfig) -> Fields:
    """Write BERT's or RoBERTa's fields."""
    fields = hf_sizes(c)
    del fields["num_key_value_heads"], fields["head_dim"]
    return {
        **fields,
        "max_position_embeddings": c.max_length + c.position_offset,
        "layer_norm_eps": c.norm_eps,
        "hidden_act": hf_activation(c),
        "type_vocab_size": c.token_types,
        "pad_token_id": max(c.position_offset - 1, 0),
        "tie_word_embeddings": True,
    }


def read_distilbert(r: Reader) -> Fields:
    """Read DistilBERT's fields."""
    r.expect(tie_word_embeddings=True)
    return {
        **_ENCODER,
        "vocab_size": r.need("vocab_size"),
        "n_layers": r.need("n_layers"),
        "d_model": r.need("dim"),
        "n_heads": r.need("n_heads"),
        "d_ff": r.need("hidden_dim"),
        "max_length": r.get("max_position_embeddings", 512),
        "norm_eps": 1e-12,
        "activation": activation(r.get("activation", "gelu"), gated=False),
    }


def write_distilbert(c: TransformerConfig) -> Fields:
    """Write DistilBERT's fields."""
    return {
        "vocab_size": c.vocab_size,
        "n_layers": c.n_layers,
        "dim": c.d_model,
        "n_heads": c.n_heads,
        "hidden_dim": c.d_ff,
        "max_position_embeddings": c.max_length,
        "activation": hf_activation(c),
        "tie_word_embeddings": True,
    }


def read_t5(r: Reader) -> Fields:
    """Read T5's fields, v1.0 and v1.1."""
    style = r.get("feed_forward_proj", "relu")
    gated = style.startswith("gated-")
    name = style.removeprefix("gated-")
    # The published v1.1 configs say gated-gelu and mean the tanh form.
    name = "gelu_new" if style == "gated-gelu" else name
    model, layers = r.need("d_model"), r.need("num_layers")
    scaled = r.get("scale_decoder_outputs", r.raw.get("tie_word_embeddings") is not False)
    r.get("tie_word_embeddings")
    return {
        "architecture": "encoder_decoder",
        "vocab_size": r.need("vocab_size"),
        "n_layers": r.get("num_decoder_layers", layers),
        "n_encoder_layers": layers,
        "d_model": model,
        "n_heads": r.need("num_heads"),
        "head_dim": r.need("d_kv"),
        "d_ff": r.need("d_ff"),
        "max_length": r.get("n_positions", 512),
        "norm_eps": r.get("layer_norm_epsilon", 1e-6),
        "position": "t5",
        "relative_buckets": r.get("relative_attention_num_buckets", 32),
        "relative_max_distance": r.get("relative_attention_max_distance", 128),
        "attention_scale": 1.0,
        "activation": activation(name, gated),
        "tied_embeddings": "lm_head.weight" not in r.tensors,
        "logit_scale": float(model) ** -0.5 if scaled else 1.0,
    }


def write_t5(c: TransformerConfig) -> Fields:
    """Write T5's fields."""
    gated = c.activation in GATED
    name = {"geglu_tanh": "gated-gelu", "swiglu": "gated-silu", "reglu": "gated-relu"}
    return {
        "vocab_size": c.vocab_size,
        "num_layers": c.n_encoder_layers,
        "num_decoder_layers": c.n_layers,
        "d_model": c.d_model,
        "num_heads": c.n_heads,
        "d_kv": c.head_dim,
        "d_ff": c.d_ff,
        "n_positions": c.max_length,
        "layer_norm_epsilon": c.norm_eps,
        "relative_attention_num_buckets": c.relative_buckets,
        "relative_attention_max_distance": c.relative_max_distance,
        "feed_forward_proj": name.get(c.activation, "") if gated else hf_activation(c),
        # Both meanings at once, as `transformers` has it: tied and scaled, or neither.
        "tie_word_embeddings": c.logit_scale != 1.0,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }

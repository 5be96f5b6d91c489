# SPDX-License-Identifier: Apache-2.0
"""Hugging Face `config.json` to `TransformerConfig` and back, family by family. No JAX."""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from llm.errors import ConfigError
from llm.models import hf_encoders, hf_heads
from llm.models.config import MAX_LAYERS, TransformerConfig, from_dict, unknown
from llm.models.hf_reader import (
    BIASED_LAYERNORM,
    Fields,
    Reader,
    activation,
    hf_activation,
    hf_rope,
    hf_sizes,
    layer_types,
    rope,
    sizes,
    window,
)


def _read_llama(r: Reader) -> Fields:
    bias = bool(r.get("attention_bias", False))
    return {
        **sizes(r),
        **rope(r),
        **window(r),
        "norm_eps": r.get("rms_norm_eps", 1e-6),
        "activation": activation(r.get("hidden_act", "silu"), gated=True),
        "attention_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": bool(r.get("mlp_bias", False)),
        "tied_embeddings": bool(r.get("tie_word_embeddings", False)),
    }


def _write_llama(c: TransformerConfig) -> Fields:
    return {
        **hf_sizes(c),
        **hf_rope(c),
        "rms_norm_eps": c.norm_eps,
        "hidden_act": hf_activation(c),
        "tie_word_embeddings": c.tied_embeddings,
    }


def _write_llama_biased(c: TransformerConfig) -> Fields:
    return {**_write_llama(c), "attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias}


def _write_windowed(c: TransformerConfig) -> Fields:
    return {**_write_llama(c), "sliding_window": c.window or None}


def _read_qwen2(r: Reader) -> Fields:
    fields = _read_llama(r)
    if fields.get("window") and "layer_types" not in r.raw:
        full = min(r.get("max_window_layers", 0), fields["n_layers"])  # they see everything
        fields["window_pattern"] = "G" * full + "L" * (fields["n_layers"] - full) if full else "L"
    return {**fields, "attention_bias": True, "attention_out_bias": False}


def _write_qwen(c: TransformerConfig) -> Fields:
    fields = {**_write_llama(c), "use_sliding_window": c.window > 0, "layer_types": layer_types(c)}
    return {**fields, "sliding_window": c.window or None, "max_window_layers": c.n_layers}


def _read_qwen3(r: Reader) -> Fields:
    return {**_read_llama(r), "qk_norm": "head"}


def _read_qwen3_moe(r: Reader) -> Fields:
    r.expect(decoder_sparse_step=1, mlp_only_layers=[])
    local = r.get("num_local_experts")
    return {
        **_read_qwen3(r),
        "n_experts": local or r.need("num_experts"),
        "experts_per_token": r.need("num_experts_per_tok"),
        "d_expert": r.need("moe_intermediate_size"),
        "router_normalize": bool(r.get("norm_topk_prob", False)),
    }


def _write_qwen3_moe(c: TransformerConfig) -> Fields:
    return {
        **_write_windowed(c),
        "use_sliding_window": c.window > 0,
        "num_experts": c.n_experts,
        "num_experts_per_tok": c.experts_per_token,
        "moe_intermediate_size": c.d_expert,
        "norm_topk_prob": c.router_normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _read_qwen2_moe(r: Reader) -> Fields:
    r.expect(decoder_sparse_step=1, mlp_only_layers=[], qkv_bias=True)
    hidden, shared = r.need("moe_intermediate_size"), r.need("shared_expert_intermediate_size")
    if shared % hidden:
        raise ConfigError(
            f"config.json has shared_expert_intermediate_size={shared}, which is no multiple of "
            f"moe_intermediate_size={hidden}.",
            "Only shared experts of whole experts' size are supported.",
        )
    return {
        **_read_qwen2(r),
        "n_experts": r.need("num_experts"),
        "experts_per_token": r.get("num_experts_per_tok", 4),
        "d_expert": hidden,
        "n_shared_experts": shared // hidden,
        "shared_expert_gate": True,
        "router_normalize": bool(r.get("norm_topk_prob", False)),
    }


def _write_qwen2_moe(c: TransformerConfig) -> Fields:
    return {
        **_write_qwen(c),
        "num_experts": c.n_experts,
        "num_experts_per_tok": c.experts_per_token,
        "moe_intermediate_size": c.d_expert,
        "shared_expert_intermediate_size": c.n_shared_experts * c.d_expert,
        "norm_topk_prob": c.router_normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": True,
    }


def _read_mixtral(r: Reader) -> Fields:
    return {
        **_read_llama(r),
        "n_experts": r.need("num_local_experts"),
        "experts_per_token": r.get("num_experts_per_tok", 2),
    }


def _write_mixtral(c: TransformerConfig) -> Fields:
    return {
        **_write_windowed(c),
        "num_local_experts": c.n_experts,
        "num_experts_per_tok": c.experts_per_token,
    }


def _read_gemma(r: Reader) -> Fields:
    name = r.get("hidden_activation", "gelu_pytorch_tanh")
    fields = {**_read_llama(r), "tied_embeddings": bool(r.get("tie_word_embeddings", True))}
    return {
        **fields,
        "activation": activation(name, gated=True),
        "norm_unit_offset": True,
        "embed_scale": float(fields["d_model"]) ** 0.5,
        "head_dim": r.get("head_dim", 256),
    }


def _write_gemma(c: TransformerConfig) -> Fields:
    fields = _write_llama(c)
    name = fields.pop("hidden_act")
    return {**fields, "hidden_activation": name, "hidden_act": name}


def _read_gemma2(r: Reader) -> Fields:
    fields = {**_read_gemma(r), **window(r, "LG")}
    scalar = r.get("query_pre_attn_scalar", 256)
    return {
        **fields,
        "norm_placement": "sandwich",
        "attention_softcap": float(r.get("attn_logit_softcapping", 0.0)),
        "logit_softcap": float(r.get("final_logit_softcapping", 0.0)),
        "attention_scale": 0.0 if scalar == fields["head_dim"] else float(scalar) ** -0.5,
    }


def _write_gemma2(c: TransformerConfig) -> Fields:
    scalar = c.attention_scale**-2 if c.attention_scale else c.head_dim
    return {
        **_write_gemma(c),
        "sliding_window": c.window or None,
        "layer_types": layer_types(c),
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
    }


def _read_gemma3(r: Reader) -> Fields:
    local = ((r.get("rope_parameters") or {}).get("sliding_attention") or {}).get("rope_theta")
    period = min(r.get("sliding_window_pattern", 6), MAX_LAYERS)
    if "rope_theta" not in r.raw and "rope_parameters" not in r.raw:
        r.raw = {**r.raw, "rope_theta": 1_000_000.0}
    return {
        **_read_gemma2(r),
        **window(r, "L" * (period - 1) + "G"),
        "rope_local_theta": float(local or r.get("rope_local_base_freq", 10_000.0)),
        "qk_norm": "head",
    }


def _write_gemma3(c: TransformerConfig) -> Fields:
    return {**_write_gemma2(c), "rope_local_base_freq": c.rope_local_theta}


def _read_olmo2(r: Reader) -> Fields:
    return {**_read_llama(r), "norm_placement": "output", "qk_norm": "full"}


def _read_starcoder2(r: Reader) -> Fields:
    bias = bool(r.get("use_bias", True))
    return {
        **sizes(r),
        **rope(r),
        **window(r),
        "norm": "layernorm",
        "norm_eps": r.get("norm_epsilon", 1e-5),
        "activation": activation(r.get("hidden_act", "gelu_pytorch_tanh"), gated=False),
        **dict.fromkeys(("attention_bias", "attention_out_bias", "mlp_bias"), bias),
        "tied_embeddings": bool(r.get("tie_word_embeddings", True)),
    }


def _write_starcoder2(c: TransformerConfig) -> Fields:
    return {
        **hf_sizes(c),
        **hf_rope(c),
        "sliding_window": c.window or None,
        "norm_epsilon": c.norm_eps,
        # The same function as gelu_new, which transformers computes in another order.
        "hidden_act": "gelu_pytorch_tanh" if c.activation == "gelu_tanh" else hf_activation(c),
        "use_bias": c.attention_bias,
        "tie_word_embeddings": c.tied_embeddings,
    }


def _write_phi3(c: TransformerConfig) -> Fields:
    # Left out, these would be the published model's, beyond a smaller vocabulary.
    return {**_write_windowed(c), **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))}


def _read_gpt2(r: Reader) -> Fields:
    r.expect(
        scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    model = r.get("n_embd", 768)
    return {
        "vocab_size": r.need("vocab_size"),
        "n_layers": r.get("n_layer", 12),
        "d_model": model,
        "n_heads": r.get("n_head", 12),
        "d_ff": r.get("n_inner", 4 * model),
        "max_length": r.get("n_positions", 1024),
        "norm_eps": r.get("layer_norm_epsilon", 1e-5),
        "activation": activation(r.get("activation_function", "gelu_new"), gated=False),
        "tied_embeddings": bool(r.get("tie_word_embeddings", True)),
        "position": "learned",
        **BIASED_LAYERNORM,
    }


def _write_gpt2(c: TransformerConfig) -> Fields:
    return {
        "vocab_size": c.vocab_size,
        "n_layer": c.n_layers,
        "n_embd": c.d_model,
        "n_head": c.n_heads,
        "n_inner": c.d_ff,
        "n_positions": c.max_length,
        "layer_norm_epsilon": c.norm_eps,
        "activation_function": hf_activation(c),
        "tie_word_embeddings": c.tied_embeddings,
    }


def _read_neox(r: Reader) -> Fields:
    r.expect(attention_bias=True)
    parallel = r.get("use_parallel_residual", True)
    partial = r.get("rotary_pct", 0.25)
    base = r.get("rotary_emb_base", 10_000.0)
    return {
        **sizes(r),
        **rope(r, float(base), float(partial)),
        "norm_eps": r.get("layer_norm_eps", 1e-5),
        "activation": activation(r.get("hidden_act", "gelu"), gated=False),
        "parallel_block": "two_norms" if parallel else "none",
        "tied_embeddings": bool(r.get("tie_word_embeddings", False)),
        **BIASED_LAYERNORM,
    }


def _write_neox(c: TransformerConfig) -> Fields:
    fields = {**hf_sizes(c), **hf_rope(c)}
    for key in ("num_key_value_heads", "head_dim", "partial_rotary_factor"):
        fields.pop(key, None)
    return {
        **fields,
        "rotary_pct": c.rope_partial,
        "rotary_emb_base": fields["rope_theta"],
        "layer_norm_eps": c.norm_eps,
        "hidden_act": hf_activation(c),
        "use_parallel_residual": c.parallel_block != "none",
        "attention_bias": True,
        "tie_word_embeddings": c.tied_embeddings,
    }


def _read_opt(r: Reader) -> Fields:
    model = r.need("hidden_size")
    r.expect(do_layer_norm_before=True, enable_bias=True, word_embed_proj_dim=model)
    r.expect(_remove_final_layer_norm=False, layer_norm_elementwise_affine=True)
    return {
        "vocab_size": r.need("vocab_size"),
        "n_layers": r.need("num_hidden_layers"),
        "d_model": model,
        "n_heads": r.need("num_attention_heads"),
        "d_ff": r.need("ffn_dim"),
        "max_length": r.get("max_position_embeddings", 2048),
        "position": "learned",
        "position_offset": 2,
        "activation": activation(r.get("activation_function", "relu"), gated=False),
        "tied_embeddings": bool(r.get("tie_word_embeddings", True)),
        **BIASED_LAYERNORM,
    }


def _write_opt(c: TransformerConfig) -> Fields:
    return {
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.n_layers,
        "hidden_size": c.d_model,
        "word_embed_proj_dim": c.d_model,
        "num_attention_heads": c.n_heads,
        "ffn_dim": c.d_ff,
        "max_position_embeddings": c.max_length,
        "activation_function": hf_activation(c),
        "do_layer_norm_before": True,
        "tie_word_embeddings": c.tied_embeddings,
    }


class Family(NamedTuple):
    """How one `model_type` spells its config."""

    read: Callable[[Reader], Fields]
    write: Callable[[TransformerConfig], Fields]
    architecture: str  # the class name in config.json


# Order matters for export: the first family that can express a config is written.
FAMILIES: dict[str, Family] = {
    "llama": Family(_read_llama, _write_llama_biased, "LlamaForCausalLM"),
    "mistral": Family(_read_llama, _write_windowed, "MistralForCausalLM"),
    "mixtral": Family(_read_mixtral, _write_mixtral, "MixtralForCausalLM"),
    "qwen2": Family(_read_qwen2, _write_qwen, "Qwen2ForCausalLM"),
    "qwen3": Family(_read_qwen3, _write_qwen, "Qwen3ForCausalLM"),
    "qwen3_moe": Family(_read_qwen3_moe, _write_qwen3_moe, "Qwen3MoeForCausalLM"),
    "qwen2_moe": Family(_read_qwen2_moe, _write_qwen2_moe, "Qwen2MoeForCausalLM"),
    "gemma": Family(_read_gemma, _write_gemma, "GemmaForCausalLM"),
    "gemma2": Family(_read_gemma2, _write_gemma2, "Gemma2ForCausalLM"),
    "gemma3_text": Family(_read_gemma3, _write_gemma3, "Gemma3ForCausalLM"),
    "olmo2": Family(_read_olmo2, _write_llama, "Olmo2ForCausalLM"),
    "phi3": Family(_read_llama, _write_phi3, "Phi3ForCausalLM"),
    "gpt2": Family(_read_gpt2, _write_gpt2, "GPT2LMHeadModel"),
    "gpt_neox": Family(_read_neox, _write_neox, "GPTNeoXForCausalLM"),
    "starcoder2": Family(_read_starcoder2, _write_starcoder2, "Starcoder2ForCausalLM"),
    "opt": Family(_read_opt, _write_opt, "OPTForCausalLM"),
    "distilbert": Family(
        hf_encoders.read_distilbert, hf_encoders.write_distilbert, "DistilBertForMaskedLM"
    ),
    "bert": Family(hf_encoders.read_bert, hf_encoders.write_bert, "BertForMaskedLM"),
    "roberta": Family(hf_encoders.read_roberta, hf_encoders.write_bert, "RobertaForMaskedLM"),
    "t5": Family(hf_encoders.read_t5, hf_encoders.write_t5, "T5ForConditionalGeneration"),
}

# model_type (a pattern) -> why it is left out on purpose
_IMAGES = "it reads more than text; the text model inside, saved alone, may be supported"
OUT_OF_SCOPE = {
    "deepseek_v|kimi|minicpm3|longcat": "its multi-head latent attention is no part of this block",
    "gpt_oss": "its experts with biases and MXFP4 weights are no part of this block",
    "gemma3$|gemma3n|llama4|mllama|.*llava|pixtral|mistral3|paligemma": _IMAGES,
    ".*_vl|.*_omni|.*vision": _IMAGES,
    "mamba|falcon_mamba|rwkv|jamba|zamba|bamba|recurrent|falcon_h1": "it is no plain transformer",
    "mpt|bloom|falcon$|gptj|codegen|phi$|cohere|stablelm": "nobody has written its name table yet",
}

# Fields of ours that say how to run or train, not what the network computes.
_EXECUTION = {
    *("attention", "attention_chunk", "scan_layers", "dtype", "param_dtype"),
    *("remat", "remat_names", "matmul"),
    *("dropout", "stochastic_depth", "init", "init_std", "moe_dispatch", "capacity_factor"),
    *("adapter", "labels"),
}


def read(raw: Fields, tensors: Collection[str] = ()) -> TransformerConfig:
    """Turn a parsed `config.json` into a config; `tensors` are the names in the weight files.

    Raises:
        ConfigError: the family or one of its switched-on features is not supported.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = next(
            (why for pattern, why in OUT_OF_SCOPE.items() if re.match(pattern, str(kind))), ""
        )
        raise ConfigError(
            f"config.json has model_type={kind!r}, which is not supported{why and ': '}{why}.",
            f"Supported: {', '.join(FAMILIES)}.",
        )
    if raw.get("quantization_config"):
        raise ConfigError(
            f"config.json has quantization_config={raw['quantization_config']!r:.80}: its weights "
            "are packed integers, which are not read from Hugging Face folders.",
            "Use the unquantised model, or a GGUF file.",
        )
    reader = Reader(raw, tensors)
    try:
        fields = FAMILIES[kind].read(reader)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        raise ConfigError(
            f"config.json has a value of the wrong kind: {error!s:.80}.",
            "Download the model again.",
        ) from error
    reader.finish()
    return from_dict({**fields, **hf_heads.read(raw, kind, tensors)})


def write(config: TransformerConfig, family: str = "") -> Fields:
    """Return the `config.json` of the first family that expresses this network exactly.

    Args:
        family: a model_type to write it as; "" takes the first that fits.

    Raises:
        ConfigError: no known family (or not this one) computes this.
    """
    if family and family not in FAMILIES:
        raise unknown("model_type", family, list(FAMILIES))
    tensors = ["pooler.dense.weight"] if config.pooler else []
    tensors += [] if config.tied_embeddings else ["lm_head.weight"]
    wanted = computation(config)
    nearest: tuple[int, str, list[str]] | None = None
    for kind in [family] if family else FAMILIES:
        spelled = FAMILIES[kind]
        raw = {"model_type": kind, "architectures": [spelled.architecture], **spelled.write(config)}
        try:
            raw |= hf_heads.write(config, kind, spelled.architecture)
            found = computation(read(raw, tensors + hf_heads.tensors(config, kind)))
        except (ConfigError, ZeroDivisionError):
            continue
        different = sorted(key for key in wanted if wanted[key] != found[key])
        if not different:
            return raw
        if nearest is None or len(different) < nearest[0]:
            nearest = (len(different), kind, different)
    detail = "" if nearest is None else f" ({nearest[1]} differs in {', '.join(nearest[2])})"
    raise ConfigError(
        f"No Hugging Face family computes this model{detail}.", 'Save with format="native".'
    )


def computation(config: TransformerConfig) -> Fields:
    """Return the fields that say what the network computes, for comparison."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in _EXECUTION}
    fields["window_pattern"] = [config.is_local(i) for i in range(config.n_layers)]
    return {k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in fields.items()}

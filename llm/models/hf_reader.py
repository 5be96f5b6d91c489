# SPDX-License-Identifier: Apache-2.0
"""What the families' `config.json` files share: reading by allow-list, rotary, windows. No JAX."""

from collections.abc import Collection
from typing import Any

from llm.errors import ConfigError
from llm.models.config import GATED, MAX_LAYERS, TransformerConfig

Fields = dict[str, Any]

# Keys that do not change what the network computes: bookkeeping, token ids, initialisation,
# dropout, training losses, generation defaults, heads we do not import, repetitions of others.
_HARMLESS = """
architectures model_type transformers_version torch_dtype dtype torchscript auto_map prefix
_name_or_path tokenizer_class problem_type num_labels id2label label2id task_specific_params
gradient_checkpointing output_attentions output_hidden_states return_dict use_cache
cache_implementation pretraining_tp is_llama_config rope_interleaved is_decoder
is_encoder_decoder transformers.js_config _attn_implementation_autoset tie_weights
bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
decoder_start_token_id forced_eos_token_id bad_words_ids
initializer_range initializer_factor init_std attention_dropout attn_pdrop embd_pdrop
resid_pdrop residual_dropout embedding_dropout hidden_dropout hidden_dropout_prob
attention_probs_dropout_prob dropout
dropout_rate activation_dropout layerdrop classifier_dropout qa_dropout seq_classif_dropout
output_router_logits router_aux_loss_coef router_jitter_noise
max_length early_stopping num_beams length_penalty no_repeat_ngram_size
summary_activation summary_first_dropout summary_proj_to_labels summary_type
summary_use_proj directionality pooler_fc_size pooler_num_attention_heads
pooler_num_fc_layers pooler_size_per_head pooler_type n_ctx n_positions output_past
dense_act_fn is_gated_act max_window_layers original_max_position_embeddings
_sliding_window_pattern sinusoidal_pos_embds reorder_and_upcast_attn
"""
HARMLESS = frozenset(_HARMLESS.split())

_GATED_NAMES = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
}
_PLAIN_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
}


# LayerNorm with biases everywhere, as the older families have.
BIASED_LAYERNORM: Fields = {
    "norm": "layernorm",
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
}


class Reader:
    """Read a `config.json` key by key, remembering which were understood."""

    def __init__(self, raw: Fields, tensors: Collection[str] = ()):
        self.raw = raw
        self.seen: set[str] = set()
        self.tensors = tensors

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key's value, or the default when it is absent or null."""
        self.seen.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """Return a key's value, which must be there."""
        value = self.get(key)
        if value is None:
            raise ConfigError(f"config.json has no {key!r}.", "Use the model's complete folder.")
        return value

    def expect(self, **wanted: Any) -> None:
        """Refuse any other value of these keys (absent is fine)."""
        for key, value in wanted.items():
            found = self.get(key, value)
            if found != value:
                raise ConfigError(
                    f"config.json has {key}={found!r}, which is not supported.",
                    f"Supported: {key}={value!r}.",
                )

    def finish(self) -> None:
        """Refuse a feature nobody read: better no model than a wrong one."""
        for key, value in self.raw.items():
            if key not in self.seen and key not in HARMLESS and value not in (None, False):
                raise ConfigError(
                    f"config.json has {key}={value!r}, which this version does not know.",
                    "Use a model without that feature.",
                )


def activation(name: str, gated: bool) -> str:
    """Translate an activation's name."""
    names = _GATED_NAMES if gated else _PLAIN_NAMES
    if name not in names:
        raise ConfigError(
            f"config.json asks for the activation {name!r}.", f"Supported: {', '.join(names)}."
        )
    return names[name]


def hf_activation(c: TransformerConfig) -> str:
    """Translate our activation's name back."""
    names = _GATED_NAMES if c.activation in GATED else _PLAIN_NAMES
    return next((theirs for theirs, ours in names.items() if ours == c.activation), "")


# --- Rotary positions --------------------------------------------------------------------------


def rope(r: Reader, theta: float = 10_000.0, partial: float = 1.0) -> Fields:
    """Read either spelling: `rope_parameters`, or `rope_theta` beside `rope_scaling`."""
    new = r.get("rope_parameters") or {}
    old = r.get("rope_scaling") or {}
    main = {**new.get("full_attention", new), **old}
    theta, partial = r.get("rope_theta", theta), r.get("partial_rotary_factor", partial)
    fields: Fields = {
        "rope_theta": float(main.pop("rope_theta", None) or theta),
        "rope_partial": float(main.pop("partial_rotary_factor", None) or partial),
    }
    kind = main.pop("rope_type", None) or main.pop("type", None) or "default"
    main.pop("type", None)
    if kind == "default":
        return fields
    known = {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_length",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor",
    }
    wrong = [key for key, value in main.items() if key not in known and value is not None]
    if kind not in ("linear", "yarn", "llama3") or wrong:
        what = f"rope_type={kind!r}" if not wrong else f"{wrong[0]!r} in its rope scaling"
        raise ConfigError(
            f"config.json has {what}, which is not supported.",
            "Supported: default, linear, yarn, llama3.",
        )
    fields["rope_scaling"] = kind
    fields |= {known[key]: value for key, value in main.items() if value is not None}
    fields["rope_factor"] = float(fields.get("rope_factor", 1.0))
    if kind == "yarn":
        fields.setdefault("rope_original_length", r.get("max_position_embeddings"))
    return fields


def hf_rope(c: TransformerConfig) -> Fields:
    """Write the rotary fields in the spelling every version reads."""
    fields: Fields = {"rope_theta": c.rope_theta}
    if c.rope_partial != 1.0:
        fields["partial_rotary_factor"] = c.rope_partial
    if c.rope_scaling == "none":
        return fields
    scaling: Fields = {"rope_type": c.rope_scaling, "factor": c.rope_factor}
    if c.rope_scaling in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = c.rope_original_length
    if c.rope_scaling == "llama3":
        scaling["low_freq_factor"] = c.rope_low_freq_factor
        scaling["high_freq_factor"] = c.rope_high_freq_factor
    if c.rope_scaling == "yarn":
        scaling["beta_fast"] = c.rope_beta_fast
        scaling["beta_slow"] = c.rope_beta_slow
        if c.rope_attention_factor:
            scaling["attention_factor"] = c.rope_attention_factor
    return {**fields, "rope_scaling": scaling}


# --- Windows -----------------------------------------------------------------------------------


def _pattern(kinds: list[str]) -> str:
    """Shorten a list of layer types to its repeating word of L and G."""
    letters = {"sliding_attention": "L", "full_attention": "G"}
    unknown = [kind for kind in kinds if kind not in letters]
    if unknown:
        raise ConfigError(
            f"config.json has layers of type {unknown[0]!r}.",
            f"Supported: {', '.join(letters)}.",
        )
    word = "".join(letters[kind] for kind in kinds)
    for size in range(1, len(word) + 1):
        if (word[:size] * len(word))[: len(word)] == word:
            return word[:size]
    return word


def layers(r: Reader) -> int:
    """Read the number of layers, before anything is made as long as that.

    Raises:
        ConfigError: it is no number, or no plausible one.
    """
    count = r.need("num_hidden_layers")
    if not isinstance(count, int) or not 0 < count <= MAX_LAYERS:
        raise ConfigError(
            f"config.json has num_hidden_layers={count!r:.60}.", "Download the model again."
        )
    return count


def window(r: Reader, pattern: str = "L") -> Fields:
    """Read the sliding window and which layers use it."""
    size = r.get("sliding_window", 0)
    if not r.get("use_sliding_window", True):
        size = 0
    kinds = r.get("layer_types")
    if kinds:
        if len(kinds) != layers(r):
            raise ConfigError(
                f"config.json has {len(kinds)} layer_types for {layers(r)} layers.",
                "Download the model again.",
            )
        pattern = _pattern(kinds)
    if not size or "L" not in pattern:
        return {}
    return {"window": size, "window_pattern": pattern}


def layer_types(c: TransformerConfig) -> list[str]:
    """Write the window pattern layer by layer."""
    return ["sliding_attention" if c.is_local(i) else "full_attention" for i in range(c.n_layers)]


# --- Sizes -------------------------------------------------------------------------------------


def sizes(r: Reader) -> Fields:
    """Read the sizes under their most common names."""
    return {
        "vocab_size": r.need("vocab_size"),
        "n_layers": layers(r),
        "d_model": r.need("hidden_size"),
        "n_heads": r.need("num_attention_heads"),
        "n_kv_heads": r.get("num_key_value_heads", 0),
        "head_dim": r.get("head_dim", 0),
        "d_ff": r.need("intermediate_size"),
        "max_length": r.get("max_position_embeddings", 2048),
    }


def hf_sizes(c: TransformerConfig) -> Fields:
    """Write the sizes under their most common names."""
    return {
        "vocab_size": c.vocab_size,
        "num_hidden_layers": c.n_layers,
        "hidden_size": c.d_model,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_length,
    }

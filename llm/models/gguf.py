# SPDX-License-Identifier: Apache-2.0
"""Models in GGUF files, read and written one tensor at a time.

A GGUF tensor is the Hugging Face tensor of the same layer under another name, so the families'
tables (`llm.models.families`) serve both; only Llama's rotary dimensions are stored in pairs.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError, DataError
from llm.models import convert, gguf_blocks, gguf_file, gguf_tokenizer, hf_config
from llm.models.config import TransformerConfig
from llm.models.gguf_tokenizer import Vocabulary
from llm.models.positions import rope_frequencies


class Architecture(NamedTuple):
    """A general.architecture: its Hugging Face family, and how its rotary dimensions are stored."""

    family: str
    paired: bool  # the two numbers that rotate together are neighbours


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", True),
    "qwen2": Architecture("qwen2", False),
    "qwen3": Architecture("qwen3", False),
}
# Hugging Face family -> the architecture that holds it.
_EXPORTS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

# GGUF name -> Hugging Face name, without ".weight" or ".bias".
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FREQUENCIES = "rope_freqs.weight"  # Llama 3: what each rotary frequency is divided by
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
_LOSSLESS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def open_file(path: Any) -> gguf_file.File:
    """Open a file and check its header; see `llm.models.gguf_file.open_file`."""
    return gguf_file.open_file(path)


def read_parameters(
    file: gguf_file.File,
    config: TransformerConfig,
    dtype: str = "float32",
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Read a model's parameters; quantised weights become numbers of the dtype.

    Args:
        config: of the same file.
        dtype: of the parameters.
        place: see `llm.models.convert.load_hf`.

    Raises:
        DataError: the file is incomplete, or holds tensors that have no place.
    """
    architecture = ARCHITECTURES[file.metadata["general.architecture"]]
    names = {_their_name(name): name for name in file.tensors if name != _FREQUENCIES}

    def get(name: str) -> np.ndarray:
        array = file.read(names[name])
        heads = _paired_heads(name, config) if architecture.paired else 0
        return _to_halves(array, heads) if heads else array

    shapes = {theirs: file.tensors[name].shape for theirs, name in names.items()}
    tensors = convert.Tensors(shapes, get)
    return convert.import_tensors(tensors, config, architecture.family, dtype, place)


def read_vocabulary(file: gguf_file.File, name: str) -> Vocabulary | None:
    """Return the file's tokenizer; see `llm.models.gguf_tokenizer.read`."""
    return gguf_tokenizer.read(file.metadata, name)


def read_config(file: gguf_file.File) -> TransformerConfig:
    """Return the model's config from a file's metadata.

    Raises:
        ConfigError: an architecture or feature that is not supported.
        DataError: a key is missing or has the wrong type.
    """
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"The GGUF file holds a model of the architecture {name!r}, which is not supported.",
            f"Supported: {', '.join(ARCHITECTURES)}.",
        )

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = file.metadata.get(f"{name}.{key}", default)
        if value is None or not isinstance(value, kind):
            raise DataError(
                f"The GGUF file's {name}.{key} is {value!r}, not one {kind.__name__}.",
                "Convert the model again; per-layer sizes are not supported.",
            )
        return value

    if get("expert_count", int, 0):
        raise ConfigError("Mixtures of experts in GGUF are not supported.", "Use safetensors.")
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise DataError("The GGUF file has no token_embd.weight.", "Download it again.")
    heads = get("attention.head_count", int)
    width = get("embedding_length", int)
    head = get("attention.key_length", int, width // max(heads, 1))
    if get("rope.dimension_count", int, head) != head:
        raise ConfigError("Heads that rotate in part are not supported here.", "Use safetensors.")
    raw = {
        "model_type": ARCHITECTURES[name].family,
        "vocab_size": table.shape[0],
        "num_hidden_layers": get("block_count", int),
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", int, heads),
        "head_dim": head,
        "intermediate_size": get("feed_forward_length", int),
        "max_position_embeddings": get("context_length", int),
        # Stored in 32 bits: the shortest number that is the same there.
        "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon', float):.7g}"),
        "rope_theta": float(f"{get('rope.freq_base', float, 10_000.0):.7g}"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if name == "llama":
        raw["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        raw["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    scaling = _read_scaling(file, get)
    config = hf_config.read(raw | ({"rope_scaling": scaling} if scaling else {}))
    if _FREQUENCIES in file.tensors and not np.allclose(
        file.read(_FREQUENCIES), _frequency_factors(config), rtol=1e-4
    ):
        raise ConfigError("Its rotary frequencies follow no known rule.", "Use safetensors.")
    return config


def _read_scaling(file: gguf_file.File, get: Callable[..., Any]) -> dict[str, Any]:
    """Return the rotary scaling as config.json spells it; {} for none."""
    if _FREQUENCIES in file.tensors:
        return {
            "rope_type": "llama3",
            "factor": float(file.read(_FREQUENCIES).max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    kind = get("rope.scaling.type", str, "none")
    if kind == "none":
        return {}
    scaling = {"rope_type": kind, "factor": get("rope.scaling.factor", float)}
    if kind == "yarn":
        original = get("rope.scaling.original_context_length", int)
        scaling["original_max_position_embeddings"] = original
    return scaling


def _frequency_factors(config: TransformerConfig) -> np.ndarray:
    """Return what a config's scaling divides each default frequency by: float32 [H/2]."""
    scaled, _ = rope_frequencies(config)
    default = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    return (default / scaled).astype(np.float32)


def _their_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{kind}"
    return name  # convert.import_tensors says that it has no place


def _our_name(name: str) -> str:
    """Return the GGUF name of a Hugging Face tensor."""
    stem, _, kind = name.rpartition(".")
    top = {theirs: ours for ours, theirs in _TOP.items()}
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{ {theirs: ours for ours, theirs in _LAYER.items()}[inner] }.{kind}"


def _paired_heads(name: str, config: TransformerConfig) -> int:
    """Return how many heads' rotary dimensions a tensor holds; 0 for all but query and key."""
    if ".q_proj." in name:
        return config.n_heads
    return config.n_kv_heads if ".k_proj." in name else 0


def _to_halves(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows so that the numbers that rotate together lie half a head apart."""
    split = array.reshape(heads, -1, 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def _to_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Undo `_to_halves`."""
    split = array.reshape(heads, 2, -1, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def save(
    config: TransformerConfig,
    params: Mapping[str, Any],
    path: Any,
    tokenizer: Any = None,
    kind: str = "",
    adds_start: bool = False,
) -> None:
    """Write a model.

    Args:
        path: the .gguf file.
        tokenizer: of `llm.tokenizers`, or None.
        kind: the number format of matrices; "" keeps every bit of the parameters. Vectors stay
            F32, and matrices whose rows are no whole blocks become F16.

    Raises:
        ConfigError: an unknown kind, or a model or tokenizer that GGUF cannot hold.
        StorageError: the file cannot be written.
    """
    raw = hf_config.write(config)
    name = _EXPORTS.get(raw["model_type"])
    if name is None or config.window:
        what = "its window" if name else f"the family {raw['model_type']!r}"
        raise ConfigError(
            f"GGUF export does not cover {what}.", 'Save with format="hf" or "native".'
        )
    kind = kind or _LOSSLESS[jnp.dtype(_any_leaf(params).dtype).name]
    if kind not in gguf_blocks.WRITABLE:
        raise ConfigError(
            f"Unknown GGUF format {kind!r}.", f"Writable: {', '.join(gguf_blocks.WRITABLE)}."
        )
    tensors = _outputs(config, params, raw["model_type"], kind, ARCHITECTURES[name].paired)
    metadata: dict[str, Any] = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": _FILE_TYPES[kind],
        "general.quantization_version": 2,
        **{f"{name}.{key}": value for key, value in _write_config(config).items()},
    }
    if tokenizer is not None:
        metadata |= gguf_tokenizer.write(tokenizer, config.vocab_size, adds_start)
    gguf_file.write_file(path, metadata, tensors)


def _any_leaf(tree: Mapping[str, Any]) -> Any:
    node: Any = tree
    while isinstance(node, Mapping):
        node = next(iter(node.values()))
    return node


def _write_config(config: TransformerConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "block_count": config.n_layers,
        "context_length": config.max_length,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
    }
    if config.rope_scaling in ("linear", "yarn"):
        fields["rope.scaling.type"] = config.rope_scaling
        fields["rope.scaling.factor"] = float(config.rope_factor)
    if config.rope_scaling == "yarn":
        fields["rope.scaling.original_context_length"] = config.rope_original_length
    return fields


def _outputs(
    config: TransformerConfig, params: Mapping[str, Any], family: str, kind: str, paired: bool
) -> dict[str, gguf_file.Output]:
    outputs: dict[str, gguf_file.Output] = {}
    if config.rope_scaling == "llama3":
        factors = _frequency_factors(config)
        outputs[_FREQUENCIES] = gguf_file.Output(factors.shape, "F32", lambda: factors)
    for theirs, entry in convert.export_entries(config, params, family).items():
        heads = _paired_heads(theirs, config) if paired else 0

        def make(entry: convert.Entry = entry, heads: int = heads) -> np.ndarray:
            array = np.asarray(entry.make(), np.float32)
            return _to_pairs(array, heads) if heads else array

        fits = entry.shape[-1] % gguf_blocks.FORMATS[kind].weights == 0
        own = "F32" if len(entry.shape) == 1 else kind if fits else "F16"
        outputs[_our_name(theirs)] = gguf_file.Output(entry.shape, own, make)
    return outputs

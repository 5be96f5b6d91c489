# SPDX-License-Identifier: Apache-2.0
"""Adapters in the format of the PEFT library: adapter_config.json and adapter_model.safetensors.

The names follow from `families`: a map that reads a tensor has its update under the same name. In
families that fuse maps (GPT-2's query, key and value), the parts share A there and not here: they
are read as copies, and written as one update of the summed rank, which computes the same.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from llm import files
from llm.core import trees
from llm.errors import ConfigError, DataError
from llm.models import convert, hf_config, layouts
from llm.models.adapters import ADDED, Adapter
from llm.models.config import TransformerConfig, with_adapter
from llm.models.families import ROWS, Row

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
# Settings that change what an adapter computes and are not known here: they must be off.
_REFUSED = (
    *("modules_to_save", "layer_replication", "lora_bias", "use_qalora", "target_parameters"),
    *("trainable_token_indices", "prefix_projection", "exclude_modules", "megatron_config"),
    *("aLoRA_invocation_tokens", "alora_invocation_tokens", "use_bdlora", "arrow_config"),
)


class Part(NamedTuple):
    """One of our maps within one of their modules: rows of A, B and DoRA's magnitudes."""

    stem: str  # "decoder/layers/attention/query/lora_"
    module: str  # "model.layers.{i}.self_attn.q_proj"
    a: Row
    b: Row
    m: Row
    transposed: bool  # their weight is stored [in, out]


def parts(config: TransformerConfig, family: str) -> list[Part]:
    """List the maps of a family that can have an update."""
    found = []
    for row in ROWS[family](config):
        stem = row.ours.removesuffix("kernel")
        if stem == row.ours or "/layers/" not in stem or "router" in stem:
            continue
        dims = re.findall(r"\([^)]*\)|\{[^}]*\}|\w", row.their_layout)
        letters = row.our_layout.split()
        into = 0 if letters[0] in dims[0] else 1
        summed = [c for c in letters if c in dims[into]]
        kept = [c for c in letters if c not in summed]
        module = row.theirs.removesuffix(".weight")
        ours = f"{stem}lora_"
        out = dims[1 - into]
        found.append(
            Part(
                ours,
                module,
                Row(f"{ours}a", f"{module}.lora_A.weight", f"R {dims[into]}", _join(summed, "R")),
                Row(f"{ours}b", f"{module}.lora_B.weight", f"{out} R", _join("R", kept), row.pick),
                Row(f"{ours}m", f"{module}.lora_magnitude_vector", out, _join(kept), row.pick),
                into == 0,
            )
        )
    return found


def _join(*groups: Any) -> str:
    return " ".join(letter for group in groups for letter in group)


# --- Reading -----------------------------------------------------------------------------------


def read(folder: Any, config: TransformerConfig, family: str) -> tuple[Adapter, dict[str, Any]]:
    """Read an adapter for a base of this config.

    Returns:
        (adapter, tree of its parameters alone).

    Raises:
        ConfigError: the adapter is of another kind, or has a setting that is not known.
        DataError: tensors are missing, surplus or misshapen.
    """
    raw = files.read_json(Path(folder) / CONFIG)
    tensors = convert.open_folder(folder)
    for key in _REFUSED:
        if raw.get(key):
            raise ConfigError(
                f"{folder}/{CONFIG} has {key}={raw[key]!r}, which is not supported.",
                "Merge the adapter with PEFT and load the merged model.",
            )
    kind = raw.get("peft_type")
    if kind not in READERS:
        raise ConfigError(
            f"{folder} holds an adapter of type {kind!r}.", f"Supported: {', '.join(READERS)}."
        )
    adapter, leaves = READERS[kind](raw, tensors, config, family)
    return adapter, trees.unflatten(leaves)


def _read_lora(
    raw: Mapping[str, Any], tensors: convert.Tensors, config: TransformerConfig, family: str
) -> tuple[Adapter, dict[str, Any]]:
    if raw.get("bias", "none") != "none":
        raise ConfigError(f"The adapter trains biases ({raw['bias']!r}).", "Merge it with PEFT.")
    named = {name.removeprefix(PREFIX): name for name in tensors.shapes}
    ranks = [s[0] for n, s in tensors.shapes.items() if n.endswith(".lora_A.weight")]
    if not ranks:
        raise DataError("The adapter holds no lora_A tensor.", "Save it again with PEFT.")
    adapter = Adapter(
        name="dora" if raw.get("use_dora") else "lora",
        rank=max(ranks),
        alpha=float(raw.get("lora_alpha", 8)),
        rslora=bool(raw.get("use_rslora", False)),
    )
    leaves: dict[str, Any] = {}
    used: set[str] = set()
    for part in parts(config, family):
        used |= _read_part(part, raw, tensors, named, config, adapter, leaves)
    surplus = sorted(set(named) - used)
    if surplus:
        raise DataError(
            f"The adapter's tensor {surplus[0]} has no place in this {family}.",
            "Load the base that the adapter was trained on.",
        )
    covered = sorted({name.rsplit("lora_", 1)[0].rstrip("/_") for name in leaves})
    pattern = f"^({'|'.join(covered)})$"
    return Adapter(**{**vars(adapter), "targets": pattern}), leaves


def _read_part(
    part: Part,
    raw: Mapping[str, Any],
    tensors: convert.Tensors,
    named: Mapping[str, str],
    config: TransformerConfig,
    adapter: Adapter,
    leaves: dict[str, Any],
) -> set[str]:
    """Stack one map's tensors over the layers; layers without an update get zeros."""
    rows = (part.a, part.b) if adapter.name == "lora" else (part.a, part.b, part.m)
    places = {row: list(layouts.expand(row, config)) for row in rows}
    present = [i for i, (_, name) in enumerate(places[part.a]) if name in named]
    if not present:
        return set()
    if adapter.name == "dora" and len(present) < len(places[part.a]):
        raise ConfigError(
            f"DoRA covers {part.module} in some layers only.", "Merge the adapter with PEFT."
        )
    sizes = {**layouts.sizes(config), "R": adapter.rank}
    made = {
        row.ours: np.zeros(
            (*layouts.stacked(row, config), *layouts.shape(row.our_layout, sizes)), np.float32
        )
        for row in rows
    }
    used = set()
    for i in present:
        rank = tensors.shapes[named[places[part.a][i][1]]][0]
        own = {**sizes, "R": rank}
        module = places[part.a][i][1].removesuffix(".lora_A.weight")
        factor = _scale(raw, module, rank) / adapter.scale
        for row in rows:
            index, name = places[row][i]
            value = _tensor(tensors, named, name, layouts.shape(row.their_layout, own))
            used.add(name)
            value = layouts.to_ours(value, row, own)
            if row is part.b:
                made[row.ours][index][:rank] = value * factor
            elif row is part.a:
                made[row.ours][index][..., :rank] = value
            else:
                made[row.ours][index] = value
    leaves |= made
    return used


def _tensor(
    tensors: convert.Tensors, named: Mapping[str, str], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    if name not in named:
        raise DataError(f"The adapter lacks the tensor {name}.", "Save it again with PEFT.")
    if tensors.shapes[named[name]] != shape:
        raise DataError(
            f"The adapter's {name} is {tensors.shapes[named[name]]}, not {shape}.",
            "Load the base that the adapter was trained on.",
        )
    return tensors.get(named[name]).astype(np.float32)


def _scale(raw: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor of B A of one module, with PEFT's exceptions by pattern."""
    alpha = raw.get("lora_alpha", 8)
    for pattern, value in (raw.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (rank**0.5 if raw.get("use_rslora") else rank)


def _read_virtual(
    raw: Mapping[str, Any], tensors: convert.Tensors, config: TransformerConfig, family: str
) -> tuple[Adapter, dict[str, Any]]:
    del family
    if config.architecture != "decoder":
        raise ConfigError("PEFT's virtual tokens are read for decoders only.", "Use LoRA.")
    P, L, K, H = raw["num_virtual_tokens"], config.n_layers, config.n_kv_heads, config.head_dim
    prefix = raw["peft_type"] == "PREFIX_TUNING"
    shape = (P, L * 2 * K * H) if prefix else (P, config.d_model)
    names = {name: name for name in tensors.shapes}
    value = _tensor(tensors, names, "prompt_embeddings", shape)
    if not prefix:
        return Adapter(name="prompt", length=P), {"prompt/embedding": value}
    pairs = value.reshape(P, L, 2, K, H).transpose(2, 1, 0, 3, 4)  # [2, L, P, K, H]
    at = "decoder/layers/attention/prefix"
    return Adapter(name="prefix", length=P), {f"{at}_keys": pairs[0], f"{at}_values": pairs[1]}


READERS = {"LORA": _read_lora, "PREFIX_TUNING": _read_virtual, "PROMPT_TUNING": _read_virtual}


def attach(
    config: TransformerConfig, params: Mapping[str, Any], adapter: Adapter, added: Mapping[str, Any]
) -> tuple[TransformerConfig, dict[str, Any]]:
    """Put an adapter's parameters beside those of its base.

    Raises:
        ConfigError: the base has an adapter already.
    """
    if config.adapter.name != "none":
        raise ConfigError(
            f"The model already has an adapter ({config.adapter.name}).", "Merge it first."
        )
    return with_adapter(config, adapter), trees.merge(params, added)


# --- Writing -----------------------------------------------------------------------------------


def write(config: TransformerConfig, params: Mapping[str, Any], folder: Any) -> None:
    """Write the adapter of a model alone.

    Raises:
        ConfigError: there is none, or no Hugging Face family computes the base.
    """
    adapter = config.adapter
    if adapter.name == "none":
        raise ConfigError("The model has no adapter to save.", 'Save with format="native".')
    family = hf_config.write(with_adapter(config, Adapter()))["model_type"]
    leaves = {
        name: np.asarray(jax.device_get(leaf), np.float32)
        for name, leaf in trees.flatten(params).items()
        if re.search(ADDED, name)
    }
    task = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}.get(config.architecture)
    raw = {"task_type": task, "base_model_name_or_path": None, "inference_mode": True}
    if adapter.mergeable:
        settings, tensors = _lora_tensors(config, family, leaves)
    else:
        settings, tensors = _virtual_tensors(config, leaves)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    convert.write_arrays(place / WEIGHTS, tensors)
    files.write_json(place / CONFIG, {**raw, **settings})


def _virtual_tensors(
    config: TransformerConfig, leaves: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if config.architecture != "decoder":
        raise ConfigError(
            "PEFT has no counterpart of a prefix in an encoder.", 'Use format="adapter".'
        )
    P, prefix = config.adapter.length, config.adapter.name == "prefix"
    settings = {
        "peft_type": "PREFIX_TUNING" if prefix else "PROMPT_TUNING",
        "num_virtual_tokens": P,
        "token_dim": config.n_kv_heads * config.head_dim if prefix else config.d_model,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.n_kv_heads if prefix else config.n_heads,
        "num_layers": config.n_layers,
    }
    if not prefix:
        return settings, {"prompt_embeddings": leaves["prompt/embedding"]}
    at = "decoder/layers/attention/prefix"
    pairs = np.stack([leaves[f"{at}_keys"], leaves[f"{at}_values"]])  # [2, L, P, K, H]
    flat = pairs.transpose(2, 1, 0, 3, 4).reshape(P, -1)
    return {**settings, "prefix_projection": False}, {"prompt_embeddings": flat}


def _lora_tensors(
    config: TransformerConfig, family: str, leaves: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    adapter = config.adapter
    modules: dict[str, list[Part]] = {}
    for part in parts(config, family):
        modules.setdefault(part.module, []).append(part)
    modules = {
        name: group for name, group in modules.items() if any(p.a.ours in leaves for p in group)
    }
    written = {p.a.ours for group in modules.values() for p in group}
    lost = [k for k in leaves if k.endswith("lora_a") and k not in written]
    if lost or not modules:
        raise ConfigError(
            f"PEFT has no name for {lost[0] if lost else 'this adapter'} in {family}.",
            'Use format="adapter".',
        )
    tensors: dict[str, np.ndarray] = {}
    ranks, alphas = {}, {}
    for name, group in modules.items():
        times = _write_module(group, config, leaves, tensors)
        if times > 1:
            key = _suffix(name).replace("{e}", "[0-9]+")
            ranks[key] = adapter.rank * times
            alphas[key] = adapter.alpha * (times**0.5 if adapter.rslora else times)
    suffixes = sorted({_suffix(name) for name in modules})
    pattern = "|".join(re.escape(n).replace(r"\{i\}", r"\d+") for n in sorted(modules))
    settings = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.name == "dora",
        "bias": "none",
        # In an encoder-decoder the same suffix names maps of both stacks.
        "target_modules": f"({pattern})" if config.architecture == "encoder_decoder" else suffixes,
        "fan_in_fan_out": any(p.transposed for group in modules.values() for p in group),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "init_lora_weights": True,
    }
    return settings, tensors


def _suffix(module: str) -> str:
    return re.split(r"\{[ie]\}\.", module)[-1]


def _write_module(
    group: list[Part],
    config: TransformerConfig,
    leaves: Mapping[str, np.ndarray],
    tensors: dict[str, np.ndarray],
) -> int:
    """Write all layers of one of their modules; return by how much its rank grew."""
    adapter, r = config.adapter, config.adapter.rank
    covered = [part for part in group if part.a.ours in leaves]
    if adapter.name == "dora" and len(covered) < len(group):
        raise ConfigError(f"DoRA covers only a part of {group[0].module}.", 'Use format="adapter".')
    first = leaves[covered[0].a.ours]
    shared = all(np.array_equal(leaves[p.a.ours], first) for p in covered)
    times = 1 if shared else len(covered)
    sizes = {**layouts.sizes(config), "R": times * r}
    for index, name in layouts.expand(group[0].a, config):
        columns = [leaves[p.a.ours][index] for p in (covered[:1] if shared else covered)]
        a = [(group[0].a, np.concatenate(columns, axis=-1))]
        b, m = [], []
        for part in group:
            shape = layouts.shape(part.b.our_layout, sizes)
            value = np.zeros(shape, np.float32)
            if part in covered:
                at = 0 if shared else covered.index(part) * r
                value[at : at + r] = leaves[part.b.ours][index]
            b.append((part.b, value))
            if adapter.name == "dora":
                m.append((part.m, leaves[part.m.ours][index]))
        module = PREFIX + name.removesuffix("lora_A.weight")
        for suffix, pieces in (
            ("lora_A.weight", a),
            ("lora_B.weight", b),
            ("lora_magnitude_vector", m),
        ):
            if pieces:
                tensors[module + suffix] = layouts.to_theirs(pieces, sizes)
    return times

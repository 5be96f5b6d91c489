# SPDX-License-Identifier: Apache-2.0
"""Classification heads of Hugging Face models: config.json and tensor names. No JAX."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from llm.errors import ConfigError
from llm.models.config import TransformerConfig

# What is classified -> model_type -> the head's tensor. In RoBERTa and DistilBERT the head of whole
# texts has a hidden layer that ours has not.
_DECODERS = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"),
    *("gemma", "gemma2", "phi3", "starcoder2"),
)
STEMS: dict[str, dict[str, str]] = {
    "sequence": {
        **dict.fromkeys((*_DECODERS, "gpt2", "gpt_neox", "opt"), "score"),
        "bert": "classifier",
    },
    "token": {
        **dict.fromkeys(_DECODERS, "score"),
        **dict.fromkeys(("gpt2", "gpt_neox", "bert", "roberta", "distilbert"), "classifier"),
    },
}


def stem(kind: str, unit: str) -> str:
    """Return the name of a family's head.

    Raises:
        ConfigError: the family has no head of this kind, or one that is not known.
    """
    if kind not in STEMS[unit]:
        raise ConfigError(
            f"The {unit} classification head of {kind} is not supported.",
            f"Supported: {', '.join(STEMS[unit])}.",
        )
    return STEMS[unit][kind]


def read(raw: Mapping[str, Any], kind: str, tensors: Collection[str]) -> dict[str, Any]:
    """Return the config fields of a classification head; {} for other models.

    Raises:
        ConfigError: a head that is not supported.
    """
    architectures = raw.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    found = re.fullmatch(r"\w+For(Sequence|Token)Classification", str(first))
    if not found:
        return {}
    unit = found[1].lower()
    name = stem(kind, unit)
    names = raw.get("id2label") or {str(i): f"LABEL_{i}" for i in range(2)}
    if not isinstance(names, Mapping):
        raise ConfigError("config.json has an id2label that is no table.", "Correct it.")
    labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(len(names))]
    plain = labels == [f"LABEL_{i}" for i in range(len(labels))]
    return {
        "head": unit,
        "n_classes": len(labels),
        "labels": () if plain else tuple(labels),
        "head_bias": any(t.endswith(f"{name}.bias") for t in tensors),
    }


def write(config: TransformerConfig, kind: str, architecture: str) -> dict[str, Any]:
    """Return what config.json says of the head, {} where it gives tokens.

    Raises:
        ConfigError: the family has no such head.
    """
    if not config.classifies:
        return {}
    stem(kind, config.head)
    if kind == "bert" and config.pooler != (config.head == "sequence"):
        raise ConfigError(
            "BERT pools for the classification of whole texts, and only for it.",
            'Save with format="native", or set model.pooler accordingly.',
        )
    names = config.labels or [f"LABEL_{i}" for i in range(config.n_classes)]
    base = re.split("For|LMHead", architecture)[0]
    return {
        "architectures": [f"{base}For{config.head.capitalize()}Classification"],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def tensors(config: TransformerConfig, kind: str) -> list[str]:
    """Return the head's optional tensors: its bias."""
    bias = config.classifies and config.head_bias and kind in STEMS[config.head]
    return [f"{stem(kind, config.head)}.bias"] if bias else []

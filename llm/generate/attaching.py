# SPDX-License-Identifier: Apache-2.0
"""Adapters in folders of their own: written without the base, put beside it when it is loaded."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm import files
from llm.core import trees
from llm.errors import ConfigError, DataError
from llm.generate.language_model import LanguageModel
from llm.models import convert, hf_config, peft
from llm.models.adapters import ADDED, HEADS
from llm.models.config import from_dict, inherit

CONFIG, WEIGHTS = "adapter.json", "adapter.safetensors"
# What a new head changes in the config of its base.
_HEAD_FIELDS = ("head", "n_classes", "labels", "head_bias", "pooler")


def save_peft(lm: LanguageModel, place: Any) -> None:
    """Write the adapter in PEFT's format; see `llm.models.peft`."""
    peft.write(lm.config, lm.params, place)


def save_adapter(lm: LanguageModel, place: Any) -> None:
    """Write the adapter (and a classification head) under this project's own names.

    Raises:
        ConfigError: the model has neither.
    """
    pattern = f"{ADDED}|{HEADS}|^pooler/" if lm.config.classifies else ADDED
    kept = {k: v for k, v in trees.flatten(lm.params).items() if re.search(pattern, k)}
    if not kept:
        raise ConfigError("The model has no adapter to save.", 'Save with format="native".')
    fields = {"adapter": dataclasses.asdict(lm.config.adapter)}
    if lm.config.classifies:
        fields |= {name: getattr(lm.config, name) for name in _HEAD_FIELDS}
    Path(place).mkdir(parents=True, exist_ok=True)
    arrays = {name: np.asarray(jax.device_get(leaf)) for name, leaf in kept.items()}
    convert.write_arrays(Path(place) / WEIGHTS, arrays)
    files.write_json(Path(place) / CONFIG, {"model": fields})


def attach(lm: LanguageModel, folder: Any, dtype: str) -> LanguageModel:
    """Return the model with the adapter of a folder: ours or PEFT's.

    Raises:
        ConfigError: there is no adapter, or it does not fit.
        DataError: its files are damaged.
    """
    from llm.generate.loading import assemble

    if lm.config.adapter.name != "none":
        raise ConfigError(
            f"The model already has an adapter ({lm.config.adapter.name}).",
            "Merge it first: lm.merge().save(folder), then load that folder with adapter=….",
        )
    place = Path(folder)
    if (place / peft.CONFIG).exists():
        family = hf_config.write(lm.config)["model_type"]
        adapter, added = peft.read(place, lm.config, family)
        config, params = peft.attach(lm.config, lm.params, adapter, added)
    elif (place / CONFIG).exists():
        config, params = _own(lm, place)
    else:
        raise ConfigError(
            f"{place} holds no adapter.", f"An adapter has {peft.CONFIG} (PEFT) or {CONFIG}."
        )
    made = assemble(config, params, lm.tokenizer, dtype, lm.mesh, str(place))
    return dataclasses.replace(lm, config=made.config, model=made.model, params=made.params)


def _own(lm: LanguageModel, place: Path) -> tuple[Any, dict[str, Any]]:
    settings = files.read_json(place / CONFIG)
    if not isinstance(settings, dict) or "adapter" not in settings.get("model", {}):
        raise DataError(f"{place / CONFIG} describes no adapter.", "Save it again.")
    config = from_dict(inherit(settings["model"], dataclasses.asdict(lm.config)))
    tensors = convert.open_folder(place)
    base = trees.flatten(lm.params)
    if config.classifies:
        base = {name: leaf for name, leaf in base.items() if not name.startswith("lm_head/")}
    return config, trees.unflatten(base | {name: tensors.get(name) for name in tensors.shapes})

# SPDX-License-Identifier: Apache-2.0
"""Run a quantised checkpoint without making its weights floating-point first."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm import files
from llm.core import checkpoint
from llm.errors import ConfigError
from llm.generate.language_model import LanguageModel
from llm.models import quant


def keep_integers(lm: LanguageModel, source: Any) -> LanguageModel:
    """Return a loaded model that holds its matrices as the integers of its checkpoint.

    Each layer's are turned into weights as the layer runs: a quarter of the memory of float32, for
    more work per token.

    Args:
        lm: what `llm.load(source)` returned.
        source: the workdir of a compressed model.

    Raises:
        ConfigError: the checkpoint is not quantised, or the model is laid over a mesh.
    """
    config = files.path(source) / "config.json"
    if not config.exists() or "quantization" not in files.read_json(config):
        raise ConfigError(f"{source} is not quantised.", "Give the workdir of a compress run.")
    if lm.mesh is not None:
        raise ConfigError("Integers are kept on one device only.", "Load without a mesh.")
    restored = checkpoint.restore(source, step=lm.step, entries=("params",))
    integers = quant.unpack(restored.tree["params"])
    return dataclasses.replace(lm, params=jax.tree.map(jnp.asarray, integers))

# SPDX-License-Identifier: Apache-2.0
"""Put a training run together from its config without a device: shapes, shardings, the step."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from llm import files
from llm.core import config as configs
from llm.core import sharding, trees
from llm.errors import ConfigError
from llm.models.config import TransformerConfig, inherit
from llm.models.transformer import Transformer
from llm.train import initial, run
from llm.train.objective import Objective
from llm.train.optim import Optimizer

OBJECTIVES = {
    "clm": "llm.train.objective:cross_entropy",
    "sft": "llm.train.objective:cross_entropy",
}
# Rows of these hold a chosen and a rejected answer.
PAIRED = ("reward", "dpo", "ipo", "orpo", "simpo", "cpo")
ROW = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "weights": jnp.float32,
    "segments": jnp.int32,
    "positions": jnp.int32,
}
UNREAD_VOCABULARY = 272  # of the byte tokenizer; characters are about as many


class Assembly(NamedTuple):
    """A run before it exists.

    Attributes:
        config: of the model.
        settings: the train section.
        length: tokens of a row, on the decoder's side for encoder-decoders.
        encoder_length: tokens on the encoder's side; 0 without one.
        chunk: positions whose logits exist at once; 0 for all.
        layout: mesh and rules.
        bones: parameter shapes and shardings.
        where: shapes and shardings of the training state.
        objective: what to minimise.
        optimizer: how.
        batch: shapes of the rows of a step.
    """

    config: TransformerConfig
    settings: run.Settings
    length: int
    encoder_length: int
    chunk: int
    layout: sharding.Layout
    bones: initial.Skeleton
    where: initial.Placement
    objective: Objective
    optimizer: Optimizer
    batch: dict[str, jax.ShapeDtypeStruct]

    @property
    def compared(self) -> bool:
        """Tell whether a frozen reference or teacher reads the rows too."""
        return bool(jax.tree.leaves(self.where.frozen.objective))

    @property
    def pairs(self) -> bool:
        """Tell whether rows hold two sequences each (preferences)."""
        return any(name.startswith("chosen_") for name in self.batch)


def assemble(
    config: Any, devices: int | list[Any], objectives: Mapping[str, str] = OBJECTIVES
) -> Assembly:
    """Build everything but arrays.

    Args:
        config: a training config (sections model, data, objective, optimizer, schedule, train,
            mesh).
        devices: how many there are, or described ones to compile for.
        objectives: name -> "module:function" that builds it.

    Raises:
        ConfigError: a section is wrong, or the mesh fits neither devices, batch nor parameters.
    """
    if "model" not in config or "train" not in config:
        raise ConfigError(
            "The planner plans training runs; this config has no model and train sections.",
            "Give a config of configs/pretrain or configs/posttrain.",
        )
    mesh = _mesh(dict(config.mesh), devices)
    choices = configs.bind(sharding.Choices, config.get("sharding", {}), "sharding")
    layout = sharding.make_layout(mesh, choices)
    settings = run.Settings(**configs.bind(run.Settings, config.train, "train"))
    run.check_batch(settings, mesh)
    shape = model_config(config)
    model = Transformer(shape)
    spec = configs.choose(config.objective.name, objectives, "objective")
    builder = configs.resolve_builder(spec)
    objective = builder(
        model, **configs.bind(builder, config.objective, "objective", given=("model",))
    )
    # Parameters are the same for every attention backend; choosing one would ask for a device.
    plain = Transformer(dataclasses.replace(shape, attention="xla"))
    bones = initial.skeleton(plain, layout, settings.trainable)
    optimizer = run.make_optimizer(
        settings.steps,
        bones.axes,
        dict(config.schedule),
        **{key: config.optimizer[key] for key in config.optimizer},
    )
    where = initial.placement(objective, optimizer, bones, layout, ema=settings.ema_decay > 0)
    encoder_length, length = row_lengths(config, shape)
    pairs = config.objective.name in PAIRED
    return Assembly(
        shape,
        settings,
        length,
        encoder_length,
        int(config.objective.get("chunk", 0) or 0),
        layout,
        bones,
        where,
        objective,
        optimizer,
        _batch(mesh, settings.batch_size, length, encoder_length, pairs),
    )


def row_lengths(config: Any, shape: TransformerConfig) -> tuple[int, int]:
    """Return the tokens of a row on the encoder's side (0 without one) and on the other.

    Span corruption splits a row: each hidden span leaves one sentinel on either side, and the
    decoder's ends with one more (Raffel et al., 2020).
    """
    length = int(config.data.length)
    if shape.architecture != "encoder_decoder":
        return 0, length
    noise = config.data.get("corruption", {})
    if "mean_span" not in noise:
        return length, length
    hidden = round(length * noise["rate"])
    spans = max(1, round(hidden / noise["mean_span"]))
    return length - hidden + spans, hidden + spans + 1


def _mesh(sizes: dict[str, Any], devices: int | list[Any]) -> Any:
    if isinstance(devices, list):
        return sharding.make_mesh(sizes, devices)
    sizes.pop("dcn", None)
    shape = sharding.mesh_shape(sizes, devices)
    auto = (AxisType.Auto,) * len(sharding.MESH_AXES)
    return AbstractMesh(tuple(shape.values()), sharding.MESH_AXES, axis_types=auto)


def _batch(
    mesh: Any, rows: int, length: int, encoder_length: int, pairs: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    place = sharding.batch_sharding(mesh, 2)
    fields = {
        prefix + name: (length, dtype)
        for prefix in (("chosen_", "rejected_") if pairs else ("",))
        for name, dtype in ROW.items()
    }
    if encoder_length:
        for name in ("tokens", "segments", "positions"):
            fields[f"encoder_{name}"] = (encoder_length, ROW[name])
    return {
        name: jax.ShapeDtypeStruct((rows, size), dtype, sharding=place)
        for name, (size, dtype) in fields.items()
    }


def model_config(config: Any) -> TransformerConfig:
    """Build the model's config: its own fields, or those of the run it starts from.

    Raises:
        ConfigError: there is nothing to inherit, or a field is wrong.
    """
    fields = {key: config.model[key] for key in config.model}
    if fields.get("name") == "inherit":
        fields = inherit(fields, _inherited(config))
    fields = configs.bind(TransformerConfig, fields, "model")
    if not fields["vocab_size"]:
        fields["vocab_size"] = 64 * math.ceil(_tokenizer_size(config) / 64)
    return TransformerConfig(**fields).validate()


def _inherited(config: Any) -> dict[str, Any]:
    origin = config.init["from"]
    source = files.path(origin) / "config.json" if origin else None
    if source is None or not source.exists():
        raise ConfigError(
            "config.model inherits, but config.init.from names no run of ours.",
            "Give --config.init.from=<workdir of an earlier run>.",
        )
    return dict(files.read_json(source)["model"])


def _tokenizer_size(config: Any) -> int:
    path = config.tokenizer.path
    if path in ("", "byte", "char"):
        return UNREAD_VOCABULARY
    from llm import tokenizers

    return tokenizers.load(path).vocab_size


def parts_of(made: Assembly) -> dict[str, int]:
    """Return in how many parts each mesh axis splits."""
    return dict(made.layout.mesh.shape)


def batch_parts(made: Assembly) -> int:
    """Return in how many parts the mesh splits a batch."""
    return sharding.batch_parts(made.layout.mesh)


def counts(made: Assembly) -> tuple[int, int]:
    """Return the numbers of all parameters and of the trained ones."""
    trained, _ = made.bones.split(made.bones.shapes)
    return trees.count(made.bones.shapes), trees.count(trained)

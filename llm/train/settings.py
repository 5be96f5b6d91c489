# SPDX-License-Identifier: Apache-2.0
"""What a training run is told: its inputs, the train section, the optimizer's sections."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from llm.core import config as configs
from llm.core import sharding
from llm.errors import ConfigError
from llm.generate.bases import Base
from llm.train import optim
from llm.train.objective import Objective


class Inputs(NamedTuple):
    """What a stage hands to training.

    Attributes:
        model: a Transformer.
        objective: what to minimise.
        source: training batches.
        splits: name -> held-out rows, or data that measure themselves.
        tokenizer: for samples; its hash is kept with the checkpoints.
        start: full parameters to start from, or None for fresh ones.
        start_name: where they came from, for errors.
        base: the model they came from, if checkpoints may refer to it for what is not trained.
    """

    model: Any
    objective: Objective
    source: Any
    splits: Mapping[str, Any]
    tokenizer: Any
    start: Any = None
    start_name: str = ""
    base: Base | None = None


class Settings(NamedTuple):
    """The train section of a config.

    Attributes:
        steps: updates.
        batch_size: sequences per update, over all devices.
        microbatches: parts a batch is processed in.
        log_every: steps between log lines.
        eval_every: steps between evaluations that do not say their own.
        eval_first: evaluate before the first step too.
        ema_decay: moving average of parameters; 0 for none.
        trainable: regular expression of trained parameters; "" is those of the model's adapters,
            or all where it has none.
        stop_after: leave cleanly after this step; 0 never.
        max_bad_steps: non-finite steps in a row that end the run.
        accept_new_data: resume even though the data changed.
        track: trackers, of "tensorboard" and "wandb".
        norms_every: steps between lines with the gradient norm of every group of parameters.
        spike: see `spikes.Spikes`.
        heartbeat: seconds after which a silent process of a multi-process run ends the others.
        step_timeout: seconds after which a step that hangs ends the run; 0 never.
    """

    steps: int
    batch_size: int
    microbatches: int = 1
    log_every: int = 50
    eval_every: int = 0
    eval_first: bool = False
    ema_decay: float = 0.0
    trainable: str = ""
    stop_after: int = 0
    max_bad_steps: int = 20
    accept_new_data: bool = False
    track: tuple = ()
    norms_every: int = 0
    spike: Mapping[str, Any] = MappingProxyType({})
    heartbeat: float = 60.0
    step_timeout: float = 1800.0

    @property
    def microbatch(self) -> int:
        """Sequences that the model is given at once, over all devices."""
        return self.batch_size // self.microbatches


def check_batch(settings: Settings, mesh: Any) -> None:
    """Refuse a batch that the microbatches and the mesh do not divide.

    Raises:
        ConfigError: names the numbers and the nearest batch size that would do.
    """
    parts = sharding.batch_parts(mesh) * settings.microbatches
    if settings.batch_size % parts:
        near = max(round(settings.batch_size / parts), 1) * parts
        raise ConfigError(
            f"config.train.batch_size={settings.batch_size} does not divide into "
            f"{settings.microbatches} microbatches over {sharding.batch_parts(mesh)} batch shards.",
            f"The nearest that does is {near}.",
        )


def make_optimizer(
    steps: int,
    axes: dict[str, tuple[str | None, ...]],
    schedule: Mapping[str, Any],
    *,
    name: str,
    clip_norm: float = 1.0,
    no_decay: str = "",
    scales: tuple = (),
    **options: Any,
) -> optim.Optimizer:
    """Build optimizer and schedule from their config sections.

    Args:
        steps: steps of the whole run, which most schedules need.
        axes: parameter name -> logical axes.
        schedule: {"name", …} of `optim.SCHEDULES`.
        name: one of `optim.OPTIMIZERS`; `options` go to it.
        clip_norm: largest global gradient norm; 0 for no limit.
        no_decay: regular expression of parameters without weight decay (besides vectors).
        scales: ((pattern, factor), …) learning rates of parameter groups.
    """
    rate = configs.choose(schedule["name"], optim.SCHEDULES, "schedule")
    kind = configs.choose(name, optim.OPTIMIZERS, "optimizer")
    transform = kind(
        optim.make_parts(axes, no_decay),
        **configs.bind(kind, options, "optimizer", given=("parts",)),
    )
    arguments = configs.bind(rate, schedule, "schedule", given=("steps",))
    return optim.Optimizer(
        optim.with_scales(transform, scales), rate(steps, **arguments), clip_norm
    )


def keys(section: Any) -> dict[str, Any]:
    """Return a config section as a dict of its own keys."""
    return {key: section[key] for key in section}

# SPDX-License-Identifier: Apache-2.0
"""Assemble a training run from its config and carry it through: start, resume, train, save."""

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from llm import files
from llm.core import checkpoint, console, metrics, profile, sharding, signals, trees
from llm.core import config as configs
from llm.data import feed
from llm.errors import ConfigError, DataError
from llm.models import costs
from llm.train import evaluate, initial, loop, optim, samples
from llm.train.objective import Objective
from llm.train.step import Frozen, State, make_step


class Inputs(NamedTuple):
    """What a stage hands to training.

    Attributes:
        model: a Transformer.
        objective: what to minimise.
        source: training batches.
        splits: name -> held-out rows.
        tokenizer: for samples; its hash is kept with the checkpoints.
        start: full parameters to start from, or None for fresh ones.
        start_name: where they came from, for errors.
    """

    model: Any
    objective: Objective
    source: Any
    splits: Mapping[str, Any]
    tokenizer: Any
    start: Any = None
    start_name: str = ""


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
        trainable: regular expression of trained parameters.
        stop_after: leave cleanly after this step; 0 never.
        max_bad_steps: non-finite steps in a row that end the run.
        accept_new_data: resume even though the data changed.
        track: trackers, of "tensorboard" and "wandb".
    """

    steps: int
    batch_size: int
    microbatches: int = 1
    log_every: int = 50
    eval_every: int = 0
    eval_first: bool = False
    ema_decay: float = 0.0
    trainable: str = ".*"
    stop_after: int = 0
    max_bad_steps: int = 20
    accept_new_data: bool = False
    track: tuple = ()


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


def placer(mesh: Any) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Return a function that lays this process's rows over the mesh."""

    def place(batch: Mapping[str, np.ndarray]) -> Any:
        return {
            k: jax.make_array_from_process_local_data(sharding.batch_sharding(mesh, v.ndim), v)
            for k, v in batch.items()
        }

    return place


def train(config: Any, workdir: str, inputs: Inputs) -> State:
    """Train, resuming from the newest verified checkpoint of `workdir` if there is one.

    Args:
        config: sections train, optimizer, schedule, mesh, checkpoint, evals, sampling, seed.
        workdir: where checkpoints, metrics and samples go.
        inputs: model, objective and data.
    """
    settings = Settings(**configs.bind(Settings, config.train, "train"))
    mesh = sharding.make_mesh(dict(config.mesh))
    check_batch(settings, mesh)
    first = jax.process_index() == 0
    with (
        sharding.use_layout(mesh) as layout,
        signals.watch(jax.process_count()) as stop,
        console.progress(settings.steps, enabled=first) as screen,
    ):
        return _train(config, workdir, inputs, settings, layout, stop.requested, screen)


def _train(
    config: Any,
    workdir: str,
    inputs: Inputs,
    settings: Settings,
    layout: sharding.Layout,
    stopping: Callable[[int], bool],
    screen: console.Screen,
) -> State:
    bones = initial.skeleton(inputs.model, layout, settings.trainable)
    optimizer = make_optimizer(
        settings.steps, bones.axes, dict(config.schedule), **_section(config.optimizer)
    )
    where = initial.placement(
        inputs.objective, optimizer, bones, layout, ema=settings.ema_decay > 0
    )
    keeper = Keeper(config, workdir, inputs, settings, bones, where)
    state, frozen = keeper.begin(optimizer, layout, int(config.seed))
    writer = metrics.Writer(
        workdir,
        int(state.step),
        settings.track,
        configs.to_dict(config),
        enabled=jax.process_index() == 0,
    )
    step = jax.jit(
        make_step(
            inputs.objective,
            optimizer,
            microbatches=settings.microbatches,
            ema_decay=settings.ema_decay,
        ),
        donate_argnums=0,
        out_shardings=(where.state, None),
    )
    place = placer(layout.mesh)
    runner = loop.Loop(
        _plan(settings, inputs, layout),
        step,
        lambda start, params: _batches(inputs.source, start, params, place),
        writer=writer,
        hooks=[
            *_evaluations(config, inputs, settings, frozen, place),
            *samples.hooks(config, workdir, inputs, frozen),
        ],
        save=keeper.save,
        save_every=keeper.every,
        stopping=stopping,
        say=screen.say,
        bar=screen.bar,
    )
    _announce(runner.say, inputs, bones, layout, int(state.step), settings)
    try:
        return runner.run(state, frozen, jax.random.key(int(config.seed)))
    finally:
        keeper.close()


def _section(section: Any) -> dict[str, Any]:
    return {key: section[key] for key in section}


def _batches(
    source: Any, start: int, params: Callable[[], Any], place: Callable[[Any], Any]
) -> Iterator[tuple[int, Any]]:
    """Yield placed batches; rows are read ahead on a thread, rollouts are made when asked for."""
    if hasattr(source, "fingerprint"):  # rows: what a step reads is known beforehand
        for step, batch in feed.prefetch(source, start, depth=4):
            yield step, place(batch)
    step = start
    while True:
        yield step, place(source.batch(step, params()))
        step += 1


def _plan(settings: Settings, inputs: Inputs, layout: sharding.Layout) -> loop.Plan:
    """Count the FLOPs of the first batch; MFU is shown only where the device's peak is known."""
    peak = profile.peak_flops(jax.devices()[0].device_kind)
    flops = 0.0
    if peak and hasattr(inputs.source, "fingerprint"):
        segments = inputs.source.batch(0).get("segments")
        if segments is not None:
            lengths = profile.document_lengths(segments)
            active, layers = (
                costs.matmul_parameters(inputs.model.config),
                costs.attention_layers(inputs.model.config),
            )
            flops = profile.training_flops(active, layers, lengths) * jax.process_count()
    return loop.Plan(
        settings.steps,
        settings.stop_after,
        settings.log_every,
        settings.max_bad_steps,
        settings.eval_first,
        flops,
        (peak or 0.0) * layout.mesh.size,
    )


def _evaluations(
    config: Any, inputs: Inputs, settings: Settings, frozen: Frozen, place: Callable[[Any], Any]
) -> list[loop.Hook]:
    """Build one hook per entry of config.evals: the objective's loss on held-out rows."""
    hooks = []
    for name, section in config.get("evals", {}).items():
        options = {"split": "validation", "every": 0, "batches": 0, **_section(section)}
        dataset = inputs.splits.get(options["split"])
        if dataset is None:
            known = ", ".join(inputs.splits) or "none"
            raise ConfigError(
                f"config.evals.{name}.split={options['split']!r} has no rows.",
                f"Splits: {known}. Take the evaluation out, or give data with that split.",
            )
        measure = evaluate.loss_evaluator(
            inputs.objective,
            dataset,
            place,
            batch_size=settings.batch_size,
            batches=options["batches"],
            index=jax.process_index(),
            count=jax.process_count(),
        )

        def function(
            step: int, state: State, measure: Any = measure, name: str = name
        ) -> dict[str, float]:
            del step
            params = state.ema if settings.ema_decay else state.params
            full = trees.merge(params, frozen.params) if frozen.params else params
            return {f"eval/{name}/{k}": v for k, v in measure(full, frozen.objective).items()}

        hooks.append(loop.Hook(name, function, options["every"] or settings.eval_every))
    return hooks


class Keeper:
    """Begin or resume training state and save it: the run's tie to its checkpoints."""

    def __init__(
        self,
        config: Any,
        workdir: str,
        inputs: Inputs,
        settings: Settings,
        bones: initial.Skeleton,
        where: initial.Placement,
    ):
        options = _section(config.checkpoint)
        self.every = options.pop("every", 0)
        self.inputs, self.settings, self.bones, self.where = inputs, settings, bones, where
        self.directory = str(files.path(workdir) / "checkpoints")
        self.checkpointer = checkpoint.Checkpointer(
            self.directory,
            **configs.bind(checkpoint.Checkpointer, options, "checkpoint", given=("directory",)),
        )
        self._rest: Any = {}
        self._saved = -1

    def begin(
        self, optimizer: optim.Optimizer, layout: sharding.Layout, seed: int
    ) -> tuple[State, Frozen]:
        """Return state and frozen part: resumed, warm-started or fresh."""
        if self.inputs.start is not None:
            params = initial.place_parameters(self.inputs.start, self.bones, self.inputs.start_name)
        else:
            params = initial.fresh_parameters(self.inputs.model, self.bones, layout, seed)
        state, frozen = initial.begin(
            params, self.inputs.objective, optimizer, self.bones, self.where
        )
        self._rest = frozen.params
        if not checkpoint.has_checkpoints(self.directory):
            return state, frozen  # damaged checkpoints alone must not restart the run
        return self._resume(), frozen

    def _tree(self, state: State) -> dict[str, Any]:
        full = trees.merge(state.params, self._rest) if self._rest else state.params
        return {
            "params": full,
            "opt_state": state.opt_state,
            "ema": state.ema,
            "counters": {"step": state.step, "skipped": state.skipped},
        }

    def _resume(self) -> State:
        """Restore the newest verified state onto this mesh.

        Raises:
            DataError: the data or the tokenizer are not those the run was trained on.
        """
        shapes, places = self.where.state_shapes, self.where.state
        target = {
            "params": self.bones.shapes,
            "opt_state": shapes.opt_state,
            "ema": shapes.ema,
            "counters": {"step": shapes.step, "skipped": shapes.skipped},
        }
        shardings = {
            "params": self.bones.shardings,
            "opt_state": places.opt_state,
            "ema": places.ema,
            "counters": {"step": places.step, "skipped": places.skipped},
        }
        restored = self.checkpointer.restore(target=target, shardings=shardings)
        self._check_extra(restored.extra)
        tree = restored.tree
        trained, _ = self.bones.split(tree["params"])
        counters = tree["counters"]
        self._saved = restored.step
        return State(counters["step"], trained, tree["opt_state"], tree["ema"], counters["skipped"])

    def _check_extra(self, extra: Mapping[str, Any]) -> None:
        now = self._extra()
        for key, what in (("fingerprint", "training data"), ("tokenizer_hash", "tokenizer")):
            then = extra.get(key)
            if then != now[key] and not self.settings.accept_new_data:
                raise DataError(
                    f"The {what} changed since the checkpoint: {then} then, {now[key]} now.",
                    "Restore them, choose another --workdir, or accept the change with "
                    "--config.train.accept_new_data=true.",
                )
        restore = getattr(self.inputs.source, "restore", None)
        if restore is not None:
            restore(extra.get("source", {}))

    def _extra(self) -> dict[str, Any]:
        return {
            "fingerprint": getattr(self.inputs.source, "fingerprint", ""),
            "tokenizer_hash": getattr(self.inputs.tokenizer, "hash", ""),
            "source": self.inputs.source.state(),
        }

    def save(self, state: State, metrics: Mapping[str, float]) -> None:
        """Save a state, once per step, with its evaluation (for checkpoint.keep_best)."""
        step = int(state.step)
        if step != self._saved:
            self.checkpointer.save(step, self._tree(state), self._extra(), dict(metrics))
            self._saved = step

    def close(self) -> None:
        """Wait for the last save."""
        self.checkpointer.close()


def _announce(
    say: Callable[[str], None],
    inputs: Inputs,
    bones: initial.Skeleton,
    layout: sharding.Layout,
    start: int,
    settings: Settings,
) -> None:
    """Say what is about to be trained, on what, from where."""
    total = trees.count(bones.shapes)
    trained = trees.count(bones.split(bones.shapes)[0])
    axes = ", ".join(f"{a}={n}" for a, n in layout.mesh.shape.items() if n > 1) or "one device"
    rows = len(inputs.source) if hasattr(inputs.source, "__len__") else 0
    say(
        f"model {total / 1e6:.2f}M parameters"
        + (f" ({trained / 1e6:.2f}M trained)" if trained != total else "")
        + (f"; data {rows:,} rows" if rows else "")
        + f"; {jax.device_count()} x {jax.devices()[0].device_kind} ({axes})"
        + f"; jax {jax.__version__}, python {platform.python_version()}"
    )
    if layout.mesh.size > 1:
        _, totals = sharding.sharding_report(bones.shapes, bones.shardings)
        say(
            f"parameters: {totals['bytes_per_device'] / 1e6:.2f} MB per device, "
            f"{totals['replicated_fraction']:.1%} of them on every device"
        )
    if start >= settings.steps:
        say(f"already trained to step {start}; raise config.train.steps to train on")
    elif start:
        say(f"resuming at step {start}")

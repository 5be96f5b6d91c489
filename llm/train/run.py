# SPDX-License-Identifier: Apache-2.0
"""Assemble a training run from its config and carry it through: start, resume, train, save."""

import platform
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np

from llm.core import (
    compilation,
    console,
    heap,
    logs,
    metrics,
    profile,
    sharding,
    shards,
    signals,
    trees,
    watchdog,
)
from llm.core import config as configs
from llm.core.sharding_report import sharding_report
from llm.data import feed
from llm.errors import NonFiniteError, Preempted
from llm.models import costs, pipeline
from llm.train import bad_batches, evaluate, initial, loop, samples, spikes
from llm.train.keeper import Keeper
from llm.train.ledger import Ledger
from llm.train.settings import Inputs, Settings, check_batch, keys, make_optimizer
from llm.train.step import State, make_step


def placer(mesh: Any) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Return a function that lays this process's rows over the mesh."""

    def place(batch: Mapping[str, np.ndarray]) -> Any:
        return {name: shards.place_rows(mesh, rows) for name, rows in batch.items()}

    return place


def train(config: Any, workdir: str, inputs: Inputs) -> State:
    """Train, resuming from the newest verified checkpoint of `workdir` if there is one.

    Args:
        config: sections train, optimizer, schedule, mesh, checkpoint, evals, sampling, seed.
        workdir: where checkpoints, metrics and samples go.
        inputs: model, objective and data.
    """
    settings = Settings(**configs.bind(Settings, config.train, "train"))
    layout = sharding.make_layout(
        sharding.make_mesh(dict(config.mesh)),
        configs.bind(sharding.Choices, config.get("sharding", {}), "sharding"),
    )
    check_batch(settings, layout.mesh)
    compilation.keep(f"{workdir}/programs")
    first = jax.process_index() == 0
    if jax.default_backend() == "cpu":
        heap.keep_freed()
    with (
        logs.record(workdir, jax.process_index()) as journal,
        sharding.use_layout(layout),
        signals.watch(jax.process_count()) as stop,
        watchdog.watch(settings.step_timeout, workdir, jax.process_index()),
        console.progress(settings.steps, enabled=first) as screen,
    ):
        screen = screen._replace(bar=_both(screen.bar, journal))
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
    begun = time.perf_counter()
    spike = spikes.make(settings.spike)
    bones = initial.skeleton(inputs.model, layout, settings.trainable)
    optimizer = make_optimizer(
        settings.steps, bones.axes, dict(config.schedule), **keys(config.optimizer)
    )
    where = initial.placement(
        inputs.objective, optimizer, bones, layout, ema=settings.ema_decay > 0
    )
    keeper = Keeper(config, workdir, inputs, settings, bones, where, spike)
    state, frozen = keeper.begin(optimizer, layout, int(config.seed))
    writer = metrics.Writer(
        workdir,
        int(state.step),
        settings.track,
        configs.to_dict(config),
        enabled=jax.process_index() == 0,
    )
    update = make_step(
        inputs.objective,
        optimizer,
        microbatches=settings.microbatches,
        ema_decay=settings.ema_decay,
        spike=spike,
        norms=settings.norms_every > 0,
        place=where.update,
        offloaded=layout.choices.offload,
    )
    places = (_places(where.state, state), None)
    step = jax.jit(update, donate_argnums=0, out_shardings=places)
    place = placer(layout.mesh)
    bad = bad_batches.BadBatches(workdir, keeper.source, inputs.tokenizer, writer.enabled)
    runner = loop.Loop(
        _plan(settings, inputs, layout),
        step,
        lambda start, params: _batches(keeper.source, start, params, place),
        writer=writer,
        hooks=[
            *_watch(inputs.source, settings.log_every),
            *evaluate.hooks(config, inputs, settings, frozen, layout.mesh, place),
            *samples.hooks(config, workdir, inputs, frozen),
        ],
        save=keeper.save,
        save_every=keeper.every,
        noticed=bad.record,
        roll_back=keeper.roll_back if spike.action == "roll_back" else None,
        ledger=lambda spent: Ledger(spent, begun),
        stopping=stopping,
        say=screen.say,
        bar=screen.bar,
    )
    _announce(runner.say, inputs, bones, where, layout, int(state.step), settings)
    together = True  # saving is done by all processes, or none
    try:
        return runner.run(state, frozen, jax.random.key(int(config.seed)))
    except BaseException as error:
        together = jax.process_count() == 1 or isinstance(error, Preempted | NonFiniteError)
        raise
    finally:
        if together:
            keeper.close()


def _places(places: State, state: State) -> State:
    """Return where the state lives, its history of losses included."""
    return places._replace(history=jax.tree.map(lambda leaf: leaf.sharding, state.history))


def _watch(source: Any, every: int) -> list[loop.Hook]:
    """Log what a source measures of itself, where it does."""
    if not hasattr(source, "metrics"):
        return []
    return [loop.Hook("rollout", lambda step, state: source.metrics(), every)]


def _both(bar: Callable[[int], None], journal: logs.Journal) -> Callable[[int], None]:
    """Return what tells the terminal and the log which step is done."""

    def moved(done: int) -> None:
        journal.step = done
        bar(done)

    return moved


def _batches(
    source: Any, start: int, params: Callable[[], Any], place: Callable[[Any], Any]
) -> Generator[tuple[int, Any], None, None]:
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
            slices = shards.host_share(layout.mesh)[1]
            flops = profile.training_flops(active, layers, lengths) * slices
    return loop.Plan(
        settings.steps,
        settings.stop_after,
        settings.log_every,
        settings.max_bad_steps,
        settings.eval_first,
        flops,
        (peak or 0.0) * layout.mesh.size,
        settings.norms_every,
    )


def _announce(
    say: Callable[[str], None],
    inputs: Inputs,
    bones: initial.Skeleton,
    where: initial.Placement,
    layout: sharding.Layout,
    start: int,
    settings: Settings,
) -> None:
    """Say what is about to be trained, on what, from where."""
    total = trees.count(bones.shapes)
    trained = trees.count(bones.split(bones.shapes)[0])
    axes = ", ".join(f"{a}={n}" for a, n in layout.mesh.shape.items() if n > 1) or "one device"
    rows = len(inputs.source) if hasattr(inputs.source, "__len__") else 0
    logs.event(
        "start",
        step=start,
        steps=settings.steps,
        processes=jax.process_count(),
        devices=jax.device_count(),
        device_kind=jax.devices()[0].device_kind,
        parameters=total,
    )
    say(
        f"model {total / 1e6:.2f}M parameters"
        + (f" ({trained / 1e6:.2f}M trained)" if trained != total else "")
        + (f"; data {rows:,} rows" if rows else "")
        + f"; {jax.device_count()} x {jax.devices()[0].device_kind} ({axes})"
        + f"; jax {jax.__version__}, python {platform.python_version()}"
    )
    stages = pipeline.schedule(layout, inputs.model.config.n_layers, settings.microbatch)
    if stages is not None:
        say(
            f"pipeline: {stages.stages} stages, {stages.microbatches} microbatches, "
            f"{stages.repeats} times round, {stages.bubble:.1%} bubble"
        )
    if layout.mesh.size > 1:
        held = {
            "parameters": (bones.shapes, bones.shardings),
            "optimizer state": (where.state_shapes.opt_state, where.state.opt_state),
        }
        for what, (shapes, places) in held.items():
            _, totals = sharding_report(shapes, places)
            say(
                f"{what}: {totals['bytes_per_device'] / 1e6:.2f} MB per device, "
                f"{totals['replicated_fraction']:.1%} of them on every device"
            )
    if start >= settings.steps:
        say(f"already trained to step {start}; raise config.train.steps to train on")
    elif start:
        say(f"resuming at step {start}")

# SPDX-License-Identifier: Apache-2.0
"""The one jitted update, exact under any microbatching, that refuses non-finite numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm.core import trees
from llm.train import spikes
from llm.train.objective import Batch, Objective
from llm.train.optim import Optimizer


class State(NamedTuple):
    """What training changes.

    Attributes:
        step: int32 [], updates tried so far.
        params: the trainable leaves.
        opt_state: optax state of those.
        ema: exponential moving average of params, or ().
        skipped: int32 [2]: non-finite updates skipped in all, and in a row.
        history: `spikes.History` of losses and norms, or () when nobody looks for spikes.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array
    history: Any = ()


class Frozen(NamedTuple):
    """What training only reads: untrained parameters, and the objective's reference or teacher."""

    params: Any
    objective: Any


def full_params(params: Any, frozen: Frozen) -> Any:
    """Join trained leaves (of the state, or their average) with the untrained ones."""
    return trees.merge(params, frozen.params) if frozen.params else params


Metrics = dict[str, jax.Array]
Step = Callable[[State, Frozen, Batch, jax.Array], tuple[State, Metrics]]


def init_state(params: Any, optimizer: Optimizer, ema: bool) -> State:
    """Start training state for trainable parameters."""
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.transform.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else (),
        skipped=jnp.zeros((2,), jnp.int32),
    )


def split_batch(batch: Any, parts: int) -> Any:
    """Reshape [B, …] to [parts, B / parts, …], strided so that every device keeps its examples."""

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def real_tokens(batch: Batch) -> jax.Array:
    """Count the tokens of a batch that are no padding, on all sides of it (float32 [])."""
    segments = [x for name, x in batch.items() if name.endswith("segments")]
    return sum((jnp.sum(x > 0, dtype=jnp.float32) for x in segments), jnp.float32(0))


def example_keys(key: jax.Array, count: int) -> jax.Array:
    """Derive one PRNG key per example of the global batch: no split of it changes them."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def gradients(
    objective: Objective,
    params: Any,
    frozen: Frozen,
    batch: Batch,
    keys: jax.Array,
    microbatches: int,
) -> tuple[Any, dict[str, tuple[jax.Array, jax.Array]]]:
    """Return summed gradients of the summed loss, and all (sum, weight) pairs."""

    def summed(p: Any, part: Batch, part_keys: jax.Array) -> tuple[jax.Array, Any]:
        full = trees.merge(p, frozen.params) if frozen.params else p
        sums = objective.loss(full, frozen.objective, part, part_keys)
        return sums["loss"][0], sums

    differentiate = jax.grad(summed, has_aux=True)
    if microbatches == 1:
        return differentiate(params, batch, keys)
    parts = split_batch((batch, keys), microbatches)

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, differentiate(params, *part)), None

    shapes = jax.eval_shape(differentiate, params, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zeros, parts)[0]


def group_norms(grads: Any) -> dict[str, jax.Array]:
    """Return the norm of each parameter's gradient, by its name without the last part."""
    squares: dict[str, Any] = {}
    for name, leaf in trees.flatten(grads).items():
        group = name.rpartition("/")[0] or name
        squares[group] = squares.get(group, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {f"grad_norm/{group}": jnp.sqrt(total) for group, total in squares.items()}


def make_step(
    objective: Objective,
    optimizer: Optimizer,
    *,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    spike: spikes.Spikes = spikes.OFF,
    norms: bool = False,
    place: Any = None,
    offloaded: bool = False,
) -> Step:
    """Build the update (state, frozen, batch, key) -> (state, metrics), to be jitted by the caller.

    Gradients are those of sum(loss) / sum(weight) over the whole global batch, whatever the number
    of microbatches. A step whose loss, weights or gradients are not finite changes neither
    parameters, optimizer state nor averages; it is counted in `State.skipped`. The metrics say
    whether the update was "applied" (1 or 0), and how far the step is a "spike" (0: not at all).

    Args:
        objective: what to minimise.
        optimizer: how.
        microbatches: parts the batch is processed in, to save memory; must divide it.
        ema_decay: 0 for no moving average of the parameters.
        spike: what spikes are, and whether their updates are skipped too.
        norms: add the gradient norm of every group of parameters to the metrics.
        place: shardings of the averaged gradients, from which updates follow; None leaves them to
            the compiler. Finer ones than the parameters' make the reduction a scatter (ZeRO-1).
        offloaded: optimizer state comes in the host's memory; the caller's `out_shardings` put it
            back there.
    """

    def step(state: State, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        if offloaded:
            state = state._replace(
                opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device)
            )
        size = jax.tree.leaves(batch)[0].shape[0]
        keys = example_keys(jax.random.fold_in(key, state.step), size)
        grads, sums = gradients(objective, state.params, frozen, batch, keys, microbatches)
        weight = jnp.maximum(sums["loss"][1], 1e-6)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        if place is not None:
            grads = jax.lax.with_sharding_constraint(grads, place)
        norm = optax.global_norm(grads)
        parts = group_norms(grads) if norms else {}
        if optimizer.clip_norm > 0:
            scale = jnp.minimum(1.0, optimizer.clip_norm / (norm + 1e-6))
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        loss = sums["loss"][0] / weight
        finite = jnp.isfinite(norm) & jnp.isfinite(loss) & jnp.isfinite(sums["loss"][1])
        score, history = _judge(state.history, loss, norm, finite, spike)
        applied = finite & (score == 0) if spike.action == "skip" else finite
        rate = optimizer.schedule(state.step)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: (p + rate * u).astype(p.dtype), state.params, updates)
        ema = state.ema
        if ema_decay:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
        params, opt_state, ema = _choose(
            applied, (params, opt_state, ema), (state.params, state.opt_state, state.ema)
        )
        bad = (~finite).astype(jnp.int32)
        skipped = jnp.stack([state.skipped[0] + bad, (state.skipped[1] + 1) * bad])
        metrics = {name: value / jnp.maximum(w, 1e-6) for name, (value, w) in sums.items()}
        metrics.update(grad_norm=norm, lr=rate, weight=sums["loss"][1], skipped=skipped[0])
        metrics.update(applied=applied.astype(jnp.float32), spike=score, tokens=real_tokens(batch))
        return State(state.step + 1, params, opt_state, ema, skipped, history), {**metrics, **parts}

    return step


def _judge(
    history: Any, loss: jax.Array, norm: jax.Array, finite: jax.Array, spike: spikes.Spikes
) -> tuple[jax.Array, Any]:
    """Return a step's spike score and the history after it; 0 where nobody looks for spikes."""
    if not history:
        return jnp.float32(0), history
    return spikes.look(history, loss, norm, finite, spike.factor)


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Select a whole tree; unlike scaling by 0, this keeps NaN out."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

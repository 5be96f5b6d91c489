# SPDX-License-Identifier: Apache-2.0
"""The one jitted update, exact under any microbatching, that refuses non-finite numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from llm.core import trees
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
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array


class Frozen(NamedTuple):
    """What training only reads: untrained parameters, and the objective's reference or teacher."""

    params: Any
    objective: Any


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


def make_step(
    objective: Objective, optimizer: Optimizer, *, microbatches: int = 1, ema_decay: float = 0.0
) -> Step:
    """Build the update (state, frozen, batch, key) -> (state, metrics), to be jitted by the caller.

    Gradients are those of sum(loss) / sum(weight) over the whole global batch, whatever the number
    of microbatches. A step whose loss or gradients are not finite changes neither parameters nor
    optimizer state; it is counted in `State.skipped`.

    Args:
        objective: what to minimise.
        optimizer: how.
        microbatches: parts the batch is processed in, to save memory; must divide it.
        ema_decay: 0 for no moving average of the parameters.
    """

    def step(state: State, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        size = jax.tree.leaves(batch)[0].shape[0]
        keys = example_keys(jax.random.fold_in(key, state.step), size)
        grads, sums = gradients(objective, state.params, frozen, batch, keys, microbatches)
        weight = jnp.maximum(sums["loss"][1], 1e-6)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        norm = optax.global_norm(grads)
        if optimizer.clip_norm > 0:
            scale = jnp.minimum(1.0, optimizer.clip_norm / (norm + 1e-6))
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"][0])
        rate = optimizer.schedule(state.step)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: (p + rate * u).astype(p.dtype), state.params, updates)
        params, opt_state = _choose(finite, (params, opt_state), (state.params, state.opt_state))
        ema = state.ema
        if ema_decay:
            ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
        bad = (~finite).astype(jnp.int32)
        skipped = jnp.stack([state.skipped[0] + bad, (state.skipped[1] + 1) * bad])
        metrics = {name: value / jnp.maximum(w, 1e-6) for name, (value, w) in sums.items()}
        metrics.update(grad_norm=norm, lr=rate, weight=sums["loss"][1], skipped=skipped[0])
        metrics["tokens"] = real_tokens(batch)
        return State(state.step + 1, params, opt_state, ema, skipped), metrics

    return step


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    """Select a whole tree; unlike scaling by 0, this keeps NaN out."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)

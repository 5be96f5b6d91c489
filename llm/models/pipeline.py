# SPDX-License-Identifier: Apache-2.0
"""Run a stack of layers as a pipeline over mesh.stage.

Stage s holds its share of the layers. A batch is cut into M microbatches; in every turn each stage
runs one of them and hands it to the next stage, so after S - 1 turns all are at work. The stages
are a dimension of the arrays: `jax.shard_map` maps what one stage does over it, and handing on is a
roll along it, which compiles to a collective-permute (arXiv:2105.04663 §3.3).
Forward and backward are one scan; accumulation over microbatches is part of it.

Going round R times (a circular pipeline, arXiv:2104.04473 §2.2) stage s holds every S-th share of
the layers: the bubble shrinks R times, and the weights, stored in layer order, change places once
per step.

Letters: S stages, M microbatches, R repeats; a turn is one run of all stages.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm.core import sharding, shards
from llm.errors import ConfigError
from llm.models.block import Block, Context, Layer
from llm.models.config import TransformerConfig

Array = jax.Array
# (parameters of one layer, what is its own, state, beside, shared) -> (state, sums)
RunLayer = Callable[[Any, Any, Array, Any, Any], tuple[Array, Any]]


class Schedule(NamedTuple):
    """Stages, microbatches and repeats."""

    stages: int
    microbatches: int
    repeats: int = 1

    @property
    def turns(self) -> int:
        """How often all stages run."""
        return self.repeats * self.microbatches + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of a stage's turns in which it has nothing to do."""
        return (self.stages - 1) / self.turns


def schedule(layout: sharding.Layout | None, layers: int, batch: int) -> Schedule | None:
    """Return how a batch goes through the stages; None without stages.

    Raises:
        ConfigError: layers or batch do not divide; says what would.
    """
    if layout is None or layout.mesh.shape["stage"] == 1:
        return None
    S, R = layout.mesh.shape["stage"], layout.choices.repeats
    if layers % (S * R):
        near = max(round(layers / (S * R)), 1) * S * R
        raise ConfigError(
            f"{layers} layers do not divide into mesh.stage={S} x sharding.repeats={R} shares.",
            f"The nearest that do are {near}.",
        )
    shards = math.prod(layout.mesh.shape[m] for m in ("data", "fsdp", "expert"))
    rows, asked = batch // shards, layout.choices.microbatches
    fits = [m for m in range(S, rows + 1) if rows % m == 0 and batch % shards == 0]
    chosen = [m for m in fits if m == asked] if asked else [m for m in fits if m <= 4 * S]
    if not chosen:
        raise ConfigError(
            f"A batch of {batch} rows over {shards} shards does not divide into "
            f"{asked or S} microbatches for mesh.stage={S}.",
            f"sharding.microbatches can be {', '.join(map(str, fits))}."
            if fits
            else f"Raise train.batch_size to a multiple of {shards * max(S, asked)}.",
        )
    return Schedule(S, chosen[-1], R)


class Nested(nn.Module):
    """Run a block under the names that it has in the model: adapters are chosen by path."""

    config: TransformerConfig
    causal: bool
    cross: bool
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, carry: Any, layer: Layer, context: Context) -> Any:
        first, *rest = self.names
        if rest:
            inner: Any = Nested(self.config, self.causal, self.cross, tuple(rest), name=first)
        else:
            inner = Block(self.config, self.causal, self.cross, name=first)
        return inner(carry, layer, context)


def layers(
    plan: Schedule,
    block: Nested,
    policy: Callable[[TransformerConfig], Any],
    params: Any,
    own: Layer,
    x: Array,
    context: Context,
) -> tuple[Array, Any]:
    """Run all layers of a stack on [B, T, D]; the parameters are those of the scanned stack.

    Args:
        plan: the schedule.
        block: runs one layer.
        policy: config -> what is kept of a layer.
        params: stacked parameters of the layers.
        own: what differs between layers, stacked.
        x: [B, T, D].
        context: what they share.
    """

    def one(
        params: Any, layer: Layer, x: Array, beside: Context, relative: Any
    ) -> tuple[Array, Any]:
        beside = beside._replace(relative=relative)
        for name in reversed(block.names):
            params = {name: params}
        (x, _), sums = block.apply({"params": params}, (x, {}), layer, beside)
        return x, sums

    if block.config.remat != "none":
        one = jax.checkpoint(one, prevent_cse=False, policy=policy(block.config))
    # The table of relative positions is the one thing without a batch dimension.
    return run(plan, one, params, own, x, context._replace(relative=None), context.relative)


def run(
    plan: Schedule, one: RunLayer, params: Any, own: Any, x: Array, beside: Any, shared: Any
) -> tuple[Array, Any]:
    """Send a batch through all layers.

    Args:
        plan: the schedule.
        one: runs one layer.
        params: parameters of all layers, stacked on axis 0 and split over mesh.stage there.
        own: what differs between layers, stacked alike.
        x: [B, T, D].
        beside: tree of arrays [B, ...] that every layer reads.
        shared: tree of arrays that every layer reads whole.

    Returns:
        [B, T, D], and the sums of all layers, stacked, over the whole batch.
    """
    S, M, R = plan
    stacks = _by_stage((params, own), S, R)
    shared = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (S, *x.shape)), shared)
    x, beside = _cut((x, beside), M)

    def stage(work: Array, stacks: Any, x: Array, beside: Any, shared: Any) -> tuple[Array, Any]:
        def layer(x: Array, each: Any) -> tuple[Array, Any]:
            weights, mine = each
            return one(weights, mine, x, beside, shared)

        turn = jnp.clip(work // M, 0, R - 1)
        x, sums = jax.lax.scan(layer, x, jax.tree.map(lambda stack: stack[turn], stacks))
        # An idle stage runs on what it holds, and nothing of that counts.
        at = (jnp.arange(R) == turn) & (work >= 0) & (work < R * M)
        return x, jax.tree.map(lambda s: jnp.where(at.reshape(R, *(1,) * s.ndim), s[None], 0), sums)

    stages = shards.over_stages(stage)

    def turn(carry: Any, t: Array) -> tuple[Any, Any]:
        kept, held = carry
        # What comes next from the first stage's queue; the others hold what was handed to them.
        held = held.at[0].set(jax.lax.dynamic_index_in_dim(kept, t % M, keepdims=False))
        work = t - jnp.arange(S)
        out, sums = stages(work, stacks, _split(held), _of(beside, work % M), shared)
        out = _split(out)
        last = (t - S + 1) % M
        old = jax.lax.dynamic_index_in_dim(kept, last, keepdims=False)
        done = jnp.where(t >= S - 1, out[-1], old)
        kept = jax.lax.dynamic_update_index_in_dim(kept, done, last, 0)
        return (kept, jnp.roll(out, 1, axis=0)), sums

    held = _split(jnp.zeros((S, *x.shape[1:]), x.dtype))
    (kept, _), sums = jax.lax.scan(turn, (x, held), jnp.arange(plan.turns))
    sums = jax.tree.map(lambda s: jnp.sum(s, axis=0), sums)
    return _whole(kept), _by_layer(sums)


def _split(x: Array) -> Array:  # [S, B/M, T, D]
    return sharding.shard(x, "stage", "microbatch", "sequence", None)


def _by_stage(tree: Any, S: int, R: int) -> Any:
    """Turn [L, ...] into [S, R, L / (S R), ...]."""

    def cut(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(R, S, x.shape[0] // (R * S), *x.shape[1:]), 0, 1)

    return jax.tree.map(cut, tree)


def _by_layer(tree: Any) -> Any:
    """Undo `_by_stage`."""

    def join(x: Array) -> Array:
        x = jnp.swapaxes(x, 0, 1)
        return x.reshape(-1, *x.shape[3:])

    return jax.tree.map(join, tree)


def _cut(tree: Any, M: int) -> Any:
    """Turn [B, ...] into [M, B / M, ...], strided so that every device keeps its rows."""

    def cut(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // M, M, *x.shape[1:]), 0, 1)

    return jax.tree.map(cut, tree)


def _whole(x: Array) -> Array:
    """Undo `_cut`."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(-1, *x.shape[2:])


def _of(tree: Any, number: Array) -> Any:
    """Take from [M, ...] each stage's microbatch: numbers [S] -> [S, ...]."""
    return jax.tree.map(lambda x: jnp.take(x, number, axis=0), tree)

# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: top-k routing, dropless or with a capacity per row, and its losses.

Letters: E experts, M tokens, J choices per token, C capacity; others as in `layers`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm.core.sharding import shard
from llm.models import lora, zigzag
from llm.models.config import TransformerConfig
from llm.models.experts import Experts, grouped
from llm.models.layers import INITIALISERS, param
from llm.models.mlp import ACTIVATIONS, MLP

Array = jax.Array
Aux = dict[str, tuple[Array, Array]]


class Routing(NamedTuple):
    """Where each token goes."""

    logits: Array  # [B, T, E] float32
    scores: Array  # [B, T, E] float32, summing to one
    weights: Array  # [B, T, J] float32
    experts: Array  # [B, T, J] int32


def route(logits: Array, config: TransformerConfig) -> Routing:  # [B, T, E] float32
    """Choose each token's experts and their weights."""
    raw = jax.nn.sigmoid(logits) if config.router == "sigmoid" else jax.nn.softmax(logits, axis=-1)
    weights, experts = jax.lax.top_k(raw, config.experts_per_token)
    if config.router_normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    scores = raw / jnp.sum(raw, axis=-1, keepdims=True)
    return Routing(logits, scores, weights, experts)


def dropless(x: Array, real: Array, routing: Routing, w: Experts, config: TransformerConfig):
    """Give every token all its experts: see `llm.models.experts`.

    Returns:
        ([B, T, D], number of dropped choices: zero).
    """
    del real, config
    return grouped(x, routing.experts, routing.weights, w), jnp.zeros((), jnp.float32)


def with_capacity(x: Array, real: Array, routing: Routing, w: Experts, config: TransformerConfig):
    """Give each expert at most C tokens of a row; a choice beyond that adds nothing.

    Rows are separate groups (GShard), so that results do not depend on how a batch is split.
    First choices are served before second ones, earlier tokens before later ones.

    Returns:
        ([B, T, D], number of dropped choices).
    """
    B, T, D = x.shape
    J, E = config.experts_per_token, config.n_experts
    C = max(1, math.ceil(config.capacity_factor * T * J / E))
    chosen = jnp.moveaxis(routing.experts, 2, 1).reshape(B, J * T)  # first choices first
    wanted = jnp.broadcast_to(real[:, None], (B, J, T)).reshape(B, J * T)
    picks = jax.nn.one_hot(chosen, E, dtype=jnp.int32) * wanted[:, :, None].astype(jnp.int32)
    place = jnp.sum((jnp.cumsum(picks, axis=1) - 1) * picks, axis=-1)  # [B, J * T]
    kept = wanted & (place < C)
    slot = jnp.where(kept, chosen * C + place, E * C)  # E * C = nowhere
    source = jnp.tile(x, (1, J, 1))
    scatter = jax.vmap(
        lambda rows, at: jnp.zeros((E * C, D), x.dtype).at[at].set(rows, mode="drop")
    )
    # Rows leave mesh.expert to the experts: the compiler exchanges them (GShard's all-to-all).
    inputs = shard(scatter(source, slot).reshape(B, E, C, D), "rows", "expert", None, None)
    hidden = w.act(w.stacked("gate", inputs)) * w.stacked("up", inputs)
    out = shard(w.stacked("down", hidden), "rows", "expert", None, None)
    out = shard(out.reshape(B, E * C, D), "batch", None, None)
    gather = jax.vmap(lambda rows, at: jnp.take(rows, at, axis=0, mode="fill", fill_value=0))
    back = jnp.moveaxis(gather(out, slot).reshape(B, J, T, D), 1, 2)
    y = jnp.einsum("BTJD,BTJ->BTD", back, routing.weights.astype(back.dtype))
    return y, jnp.sum((wanted & ~kept).astype(jnp.float32))


# config.moe_dispatch -> function
DISPATCH = {"dropless": dropless, "capacity": with_capacity}


def tally(routing: Routing, real: Array, dropped: Array) -> dict[str, Array]:
    """Sum over real tokens what `auxiliary` needs: sums of parts of a batch add up to its own."""
    mask = real.astype(jnp.float32)
    picks = jnp.sum(jax.nn.one_hot(routing.experts, routing.logits.shape[-1]), axis=2)
    z = jnp.square(jax.nn.logsumexp(routing.logits, axis=-1))
    return {
        "tokens": jnp.sum(mask),  # []
        "picks": jnp.einsum("BTE,BT->E", picks, mask),
        "scores": jnp.einsum("BTE,BT->E", routing.scores, mask),
        "z": jnp.sum(z * mask),  # []
        "dropped": dropped,  # []
    }


def auxiliary(sums: dict[str, Array], config: TransformerConfig) -> Aux:
    """Return the balance loss (arXiv:2101.03961 eq. 4), router z-loss (arXiv:2202.08906 eq. 5) and
    usage figures of one layer, each as (sum, weight) over real tokens; names ending in `_loss` are
    losses.
    """
    E, n = config.n_experts, sums["tokens"]
    safe = jnp.maximum(n, 1.0)
    load = sums["picks"] / (safe * config.experts_per_token)
    share = sums["scores"] / safe
    entropy = -jnp.sum(load * jnp.log(jnp.maximum(load, 1e-9))) / math.log(max(E, 2))
    return {
        "moe_balance_loss": (E * jnp.sum(load * share) * n, n),
        "moe_z_loss": (sums["z"], n),
        "moe_max_load": (E * jnp.max(load) * n, n),  # 1 = evenly spread
        "moe_entropy": (entropy * n, n),  # of the load: 1 = evenly spread, 0 = one expert
        "moe_idle": (jnp.mean((load == 0).astype(jnp.float32)) * n, n),  # share of experts unused
        "moe_dropped": (sums["dropped"], n * config.experts_per_token),
    }


class MoE(nn.Module):
    """Send each token through its best experts, and through the shared ones if any."""

    config: TransformerConfig

    @nn.compact
    def __call__(  # [B, T, D] -> [B, T, D], `tally`
        self, x: Array, segments: Array | None, keys: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        if self.config.moe_dispatch == "dropless" or not zigzag.active():
            return self._mix(x, segments, keys)
        segments = None if segments is None else zigzag.restore(segments)
        with zigzag.order(False):  # places are given to the tokens of a row in turn
            y, sums = self._mix(zigzag.restore(x), segments, keys)
        return zigzag.arrange(y), sums

    def _mix(
        self, x: Array, segments: Array | None, keys: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        c = self.config
        E, D, F = c.n_experts, c.d_model, c.d_expert
        make = INITIALISERS[c.init]
        dtype = jnp.dtype(c.dtype)
        router = param(self, "router_kernel", make(c, "in", D), (D, E), ("embed", None))
        into = ("expert", "embed", "mlp")
        gate = param(self, "gate_kernel", make(c, "in", D), (E, D, F), into)
        up = param(self, "up_kernel", make(c, "in", D), (E, D, F), into)
        down = param(
            self, "down_kernel", make(c, "residual", F), (E, F, D), ("expert", "mlp", "embed")
        )
        # The router decides in float32: near-ties must not depend on the compute dtype.
        logits = jnp.einsum("BTD,DE->BTE", x.astype(jnp.float32), router.astype(jnp.float32))
        routing = route(logits, c)
        real = jnp.ones(x.shape[:2], bool) if segments is None else segments > 0
        gate, up, down = gate.astype(dtype), up.astype(dtype), down.astype(dtype)
        weights = Experts(gate, up, down, _act(c), c.matmul)
        weights = weights._replace(updates=self._updates(dtype))
        dispatch = DISPATCH[c.moe_dispatch]
        y, dropped = dispatch(x.astype(dtype), real, routing, weights, c)
        if c.n_shared_experts:
            always = MLP(c, c.n_shared_experts * F, name="shared")(x, keys)
            if c.shared_expert_gate:
                axes = ("embed", None)
                valve = param(self, "shared_gate_kernel", make(c, "in", D), (D, 1), axes)
                scores = jnp.einsum("BTD,DU->BTU", x.astype(dtype), valve.astype(dtype))
                always = always * jax.nn.sigmoid(scores)
            y = y + always
        return shard(y, "batch", "length", None), tally(routing, real, dropped)

    def _updates(self, dtype: Any) -> dict[str, tuple[Array, Array]]:
        """Create the low-rank updates of the experts that the adapter covers."""
        c = self.config
        E, D, F, r = c.n_experts, c.d_model, c.d_expert, c.adapter.rank
        found = {}
        for name, into, out in (("gate", D, F), ("up", D, F), ("down", F, D)):
            if not c.adapter.covers(*self.path, name):
                continue
            first, last = ("mlp", "embed") if name == "down" else ("embed", "mlp")
            init = lora.uniform(into)
            a = param(self, f"{name}_lora_a", init, (E, into, r), ("expert", first, None))
            zeros = jax.nn.initializers.zeros
            b = param(self, f"{name}_lora_b", zeros, (E, r, out), ("expert", None, last))
            found[name] = (a.astype(dtype), b.astype(dtype) * jnp.asarray(c.adapter.scale, dtype))
        return found


def _act(config: TransformerConfig) -> Callable[[Array], Array]:
    return ACTIVATIONS[config.activation]

# SPDX-License-Identifier: Apache-2.0
"""The position-wise feed-forward layer, gated or plain."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm.core.sharding import shard
from llm.models.config import GATED, TransformerConfig
from llm.models.layers import Dense

Array = jax.Array


def gelu_exact(x: Array) -> Array:
    """Apply GELU with the error function."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    """Apply GELU in its tanh form (GPT-2, Gemma, T5 v1.1)."""
    return jax.nn.gelu(x, approximate=True)


def relu2(x: Array) -> Array:
    """Apply squared ReLU (arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


# config.activation -> the pointwise function; the gated ones apply it to the gate.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": gelu_exact,
    "geglu_tanh": gelu_tanh,
    "reglu": jax.nn.relu,
    "gelu": gelu_exact,
    "gelu_tanh": gelu_tanh,
    "relu": jax.nn.relu,
    "relu2": relu2,
    "silu": jax.nn.silu,
}


class MLP(nn.Module):
    """Map each position through a hidden layer: `down(act(gate x) * up x)` or `down(act(up x))`."""

    config: TransformerConfig
    d_ff: int = 0  # 0 = config.d_ff

    @nn.compact
    def __call__(self, x: Array, keys: Array | None = None) -> Array:  # [B, T, D] -> [B, T, D]
        c = self.config
        hidden = self.d_ff or c.d_ff
        act = ACTIVATIONS[c.activation]
        up = Dense(c, "BTD,DF->BTF", (c.d_model, hidden), c.mlp_bias, name="up")(x, keys)
        if c.activation in GATED:
            gate = Dense(c, "BTD,DF->BTF", (c.d_model, hidden), c.mlp_bias, name="gate")(x, keys)
            h = act(gate) * up
        else:
            h = act(up)
        h = shard(h, "batch", "length", "mlp")
        down = Dense(c, "BTF,FD->BTD", (hidden, c.d_model), c.mlp_bias, "residual", name="down")
        return down(h, keys)

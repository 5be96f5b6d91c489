# SPDX-License-Identifier: Apache-2.0
"""Multiplying in 8 bits against NumPy, which rounds and scales in plain steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from llm.core.sharding import unbox
from llm.models import lowbit
from llm.models.layers import Dense
from llm.models.presets import config
from llm.models.transformer import Transformer


class Grouped(nn.Module):
    """qwix asks for the module in which it multiplies."""

    matmul: str

    def __call__(self, *operands):
        return lowbit.ragged_dot(self.matmul, *operands)


def _narrow(x, axis, name):
    """Return x rounded to the narrow type with one scale per row, as float64."""
    # int8's range is made symmetric by 127.5.
    scale = np.abs(x).max(axis=axis, keepdims=True) / (127.5 if name == "int8" else 448.0)
    scaled = x / scale
    if name == "int8":
        return np.clip(np.round(scaled), -128, 127) * scale
    return scaled.astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_products_are_those_of_rounded_operands(name):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 5, 64)), rng.normal(size=(64, 24))
    # The largest number of a row may be rounded either way (to 127 or 128): multiply it by zero.
    x[..., 0], w[0] = 5, 0
    x[..., 1], w[1] = 0, 5
    dense = Dense(config("tiny", matmul=name), "BTD,DF->BTF", w.shape)
    got = dense.apply({"params": {"kernel": jnp.float32(w)}}, jnp.float32(x))
    want = _narrow(np.float32(x), 2, name) @ _narrow(np.float32(w), 0, name)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
    exact = x @ w
    error = np.abs(got - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < (0.02 if name == "int8" else 0.06)  # rounded, and not by much
    sizes = jnp.array([4, 6])
    groups = jnp.float32(np.stack([w, -w]))
    grouped = Grouped(name).apply({}, jnp.float32(x.reshape(10, 64)), groups, sizes)
    signs = np.repeat([1, -1], [4, 6])[:, None]
    np.testing.assert_allclose(grouped * signs, want.reshape(10, 24), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_gradients_of_a_model_stay_near_those_of_float32(name, jit):
    sizes = {"d_model": 64, "n_layers": 2, "vocab_size": 64, "remat": "full"}
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (2, 16)))
    plain = Transformer(config("tiny", **sizes))
    params = unbox(plain.init(jax.random.key(0), tokens)["params"])

    def gradient(model):
        def loss(p):
            return -jnp.mean(jax.nn.log_softmax(model.apply({"params": p}, tokens))[:, :, 3])

        flat = jax.tree.leaves(jit(jax.grad(loss))(params))
        return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in flat])

    want, got = gradient(plain), gradient(Transformer(config("tiny", **sizes, matmul=name)))
    cosine = got @ want / np.linalg.norm(got) / np.linalg.norm(want)
    assert 0.99 < cosine < 1 - 1e-7
    assert abs(np.linalg.norm(got) / np.linalg.norm(want) - 1) < 0.05

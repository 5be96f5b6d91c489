# SPDX-License-Identifier: Apache-2.0
"""Weights in 8 bits, multiplied as they are, against the same weights in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from llm.core.sharding import unbox
from llm.core.trees import flatten, unflatten
from llm.generate import loading
from llm.models.config import TransformerConfig
from llm.models.narrow import narrow, narrowed, product
from llm.models.transformer import Transformer, separate

CONFIG = TransformerConfig(vocab_size=96, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64)


def wide(stored, shape):
    """Return the kernel that a narrow parameter stands for, made with NumPy."""
    rows = np.asarray(stored["rows"], np.float64) * np.asarray(stored["scale"])[:, None]
    return rows.T.reshape(shape)


@pytest.mark.parametrize(("summed", "shape"), [(1, (48, 3, 8)), (2, (3, 8, 48)), (1, (700, 40))])
def test_a_product_feels_the_rounding_of_weights_only(summed, shape):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=shape).astype(np.float32)
    kernel[..., 0] *= 1e-3  # outputs of their own size keep their own scale
    x = rng.normal(size=(2, 5, *shape[:summed])).astype(np.float32)
    x[0, 0] *= 1e4
    x[0, 1] = 0
    stored = narrow(jnp.asarray(kernel), summed)
    assert stored["rows"].dtype == jnp.int8 and stored["rows"].shape[0] == stored["scale"].size
    axis = tuple(range(summed))
    most = np.abs(kernel).max(axis=axis, keepdims=True)
    assert np.all(np.abs(wide(stored, shape) - kernel) <= most / 254 * 1.0001)
    got = np.asarray(product(jnp.asarray(x), stored, summed, shape[summed:]))
    exact = np.tensordot(x.astype(np.float64), wide(stored, shape), summed)
    # A state is rounded to 1/254 of 1/127 of its largest number, half of that at most.
    largest = np.abs(x).reshape(2, 5, -1).max(-1)
    sums = np.abs(wide(stored, shape)).sum(axis=axis)
    bound = largest[(..., *[None] * sums.ndim)] * sums[None, None] / (127 * 254 * 2)
    assert np.all(np.abs(got - exact) <= bound * 1.01 + 1e-6 * np.abs(exact))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_narrow_weights_is_the_one_with_those_weights(tied):
    config = CONFIG.__class__(
        **{**vars(CONFIG), "tied_embeddings": tied, "mlp_bias": True, "attention_bias": True}
    )
    model = Transformer(config)
    rng = np.random.default_rng(1)
    shapes = flatten(unbox(loading.parameter_shapes(model)))
    params = {
        name: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32)
        for name, leaf in sorted(shapes.items())
    }
    params = separate(unflatten(params))
    stored = narrowed(params)
    plain = flatten(params)
    exact = {
        name: wide(flatten_at(stored, name), x.shape).astype(np.float32)
        if name.endswith("/kernel")
        else x
        for name, x in plain.items()
    }
    tokens = jnp.asarray(rng.integers(0, 96, (2, 9)))
    hidden = model.apply({"params": stored}, tokens, method="hidden")
    wanted = model.apply({"params": unflatten(exact)}, tokens, method="hidden")
    np.testing.assert_allclose(hidden, wanted, atol=2e-3)
    logits = model.apply({"params": stored}, wanted, method="head")
    if tied:
        head = wide(stored["embed"]["narrow"], (32, 96))
        assert stored["embed"]["embedding"] is params["embed"]["embedding"]
    else:
        head = exact["lm_head/kernel"]
    np.testing.assert_allclose(logits, np.asarray(wanted) @ head, atol=2e-3)


def flatten_at(tree, name):
    for key in name.split("/"):
        tree = tree[key]
    return tree

# SPDX-License-Identifier: Apache-2.0
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from llm.compress import matrices, quantize
from llm.core.trees import flatten, size_bytes, unflatten
from llm.errors import ConfigError
from llm.models import quant
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer


def by_hand(weight, summed, levels):
    """Quantise with NumPy loops over outputs: the largest value takes half a step more than the
    largest integer, and rounding is to even, as qwix does.
    """
    kept = [axis for axis in range(weight.ndim) if axis not in summed]
    moved = np.moveaxis(weight, kept, range(len(kept)))
    out = np.zeros_like(moved)
    for index in np.ndindex(*moved.shape[: len(kept)]):
        part = moved[index]
        scale = np.float32(np.abs(part).max() / (levels + 0.5))
        out[index] = np.clip(np.round(part / scale), -levels - 1, levels) * scale
    return np.moveaxis(out, range(len(kept)), kept)


@pytest.mark.parametrize(("method", "levels"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("summed", [(1,), (1, 2)])
def test_against_a_loop_over_outputs(method, levels, summed):
    weight = np.random.default_rng(0).normal(size=(2, 6, 4, 8)).astype(np.float32)
    leaf = quantize.quantize_leaf(weight, summed, method)
    found = np.asarray(quant.materialize(leaf))
    expected = by_hand(weight, summed, levels)
    # The largest value of an output lies on the edge between two integers: either is right.
    largest = np.abs(weight) == np.abs(weight).max(axis=summed, keepdims=True)
    np.testing.assert_allclose(found[~largest], expected[~largest], atol=1e-6)
    np.testing.assert_allclose(found, weight, atol=1.01 * np.abs(weight).max() / levels / 2)
    assert leaf["scale"].shape == tuple(1 if a in summed else n for a, n in enumerate(weight.shape))


@pytest.mark.parametrize(("method", "levels"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("group", [0, 4])
def test_error_is_at_most_half_a_step(method, levels, group):
    weight = np.random.default_rng(1).standard_t(3, size=(3, 16, 10)).astype(np.float32)
    leaf = quantize.quantize_leaf(weight, (1,), method, group)
    blocks = weight.reshape(3, -1, group or 16, 10)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    bound = np.broadcast_to(largest / (levels + 0.5) / 2, blocks.shape).reshape(weight.shape)
    error = np.abs(np.asarray(quant.materialize(leaf)) - weight)
    assert np.all(error <= bound * 1.001)
    assert error.max() > 0


def test_qwix_reads_its_own_numbers_the_same():
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(2, 12, 6)), jnp.float32)
    for tiles in ({}, {1: 4}):
        apart = (0, 2)
        array = qwix.quantize(weight, jnp.int8, channelwise_axes=apart, tiled_axes=tiles)
        leaf = {"q": array.qvalue, "scale": array.scale}
        np.testing.assert_allclose(quant.materialize(leaf), qwix.dequantize(array), rtol=1e-6)


def test_nibbles_round_trip():
    every = np.array([[a, b] for a in range(-8, 8) for b in range(-8, 8)], np.int8)
    packed = quant.pack_nibbles(every)
    assert packed.shape == (256, 1) and len(np.unique(packed)) == 256
    np.testing.assert_array_equal(quant.unpack_nibbles(packed), every)


def test_contraction_axes():
    cases = {
        ("layers", "embed", "heads", "head_dim"): (1,),
        ("layers", "heads", "head_dim", "embed"): (1, 2),
        ("layers", "mlp", "embed"): (1,),
        ("layers", "expert", "embed", "mlp"): (2,),
        ("layers", "expert", "mlp", "embed"): (2,),
        ("embed", "vocab"): (0,),
        ("vocab", "embed"): (1,),
        ("embed", None): (0,),
        ("layers", None): (),
        (None,): (),
    }
    for names, expected in cases.items():
        assert matrices.contraction_axes(names) == expected, names


def test_scales_commute_with_the_products_of_the_model(lm, axes):
    """Only then is one scale per output exact: x @ (q s) = (x @ q) s."""
    made = flatten(quantize.quantize(lm.params, axes), is_leaf=quant.is_quantized)
    query = made["decoder/layers/attention/query/kernel"]
    x = np.random.default_rng(3).normal(size=(5, 32)).astype(np.float32)
    q, scale = query["q"][0].astype(np.float32), query["scale"][0]
    np.testing.assert_allclose(
        np.einsum("BD,DNH->BNH", x, q) * scale,
        np.einsum("BD,DNH->BNH", x, np.asarray(quant.materialize(query))[0]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_model_reads_quantised_weights_in_place(lm, axes):
    tokens = np.arange(256).reshape(8, 32) % 200
    made = quantize.quantize(lm.params, axes, "int4", group=8)
    held = dataclasses.replace(lm, params=jax.tree.map(jnp.asarray, quant.unpack(made)))
    before = dataclasses.replace(lm, params=quant.dequantize(made))
    np.testing.assert_allclose(held.logits(tokens), before.logits(tokens), atol=1e-5)


def test_sizes_by_hand(lm, axes):
    c = lm.config
    D, F, V, L, H = c.d_model, c.d_ff, c.vocab_size, c.n_layers, c.head_dim
    N, K = c.n_heads, c.n_kv_heads
    matrices = L * (D * N * H + 2 * D * K * H + N * H * D + 3 * D * F) + 2 * V * D
    outputs = L * (N * H + 2 * K * H + D + 2 * F + D) + 2 * V
    rest = D + 2 * L * D
    assert size_bytes(lm.params) == 4 * (matrices + rest)
    assert size_bytes(quantize.quantize(lm.params, axes)) == matrices + 4 * outputs + 4 * rest
    four = quantize.quantize(lm.params, axes, "int4")
    assert size_bytes(four) == matrices // 2 + 4 * outputs + 4 * rest


def test_the_router_of_experts_stays_exact():
    config = TransformerConfig(vocab_size=32, n_layers=1, d_model=16, n_heads=2, n_experts=4)
    axes = quantize.parameter_axes(Transformer(config))
    params = unflatten({name: np.ones((4,) * len(names)) for name, names in axes.items()})
    made = flatten(quantize.quantize(params, axes), is_leaf=quant.is_quantized)
    kept = {name for name, leaf in made.items() if not quant.is_quantized(leaf)}
    assert [name for name in kept if "kernel" in name] == ["decoder/layers/moe/router_kernel"]
    assert made["decoder/layers/moe/up_kernel"]["scale"].shape == (4, 4, 1, 4)


def test_refusals(lm, axes):
    with pytest.raises(ConfigError, match="Unknown method"):
        quantize.quantize(lm.params, axes, "int3")
    with pytest.raises(ConfigError, match="No parameter matches"):
        quantize.quantize(lm.params, axes, include="nothing")

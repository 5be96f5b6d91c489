# SPDX-License-Identifier: Apache-2.0
"""Calibration, GPTQ and pruning against what the model itself computes, and loops."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from qwix.contrib import gptq_core

from llm.compress import calibrate, matrices, methods, prune, quantize
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError, DataError
from llm.generate.loading import parameter_shapes
from llm.models import quant
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer, separate

TEXTS = [f"def function_{i}(argument):\n    return argument * {i}\n" for i in range(14)]
LENGTH = 32
TOKENS = np.arange(256).reshape(8, 32) % 200


@pytest.fixture(scope="module")
def calibration(lm):
    return calibrate.Calibration(lm, TEXTS, LENGTH)


@pytest.fixture(scope="module")
def captured(lm, calibration):
    """Return {module: what it gave} over all rows: Flax's own record, not ours."""
    _, state = Transformer(lm.config).apply(
        {"params": separate(lm.params)}, calibration.rows, capture_intermediates=True
    )
    return flatten(state["intermediates"])


def given(captured, name):
    found = captured[f"{name}/__call__/0"]
    return np.asarray(found, np.float64).reshape(-1, found.shape[-1])


def silu(x):
    return x / (1 + np.exp(-x))


def test_moments_are_those_of_what_matrices_read(lm, calibration, captured):
    assert len(calibration.rows) % calibrate.ROWS, "the last rows are filled up"
    names = flatten(separate(lm.params))
    kernels = {name.removesuffix("/kernel") for name in names if name.endswith("kernel")}
    assert set(calibration.moments) == kernels - {"lm_head"} == set(calibration.squares)
    for layer in range(lm.config.n_layers):
        here = f"decoder/layers/{layer}"
        reads = {f"attention/{part}": "attention_norm" for part in ("query", "key", "value")}
        reads |= {"mlp/gate": "mlp_norm", "mlp/up": "mlp_norm"}
        inputs = {f"{here}/{m}": given(captured, f"{here}/{norm}") for m, norm in reads.items()}
        gate, up = (given(captured, f"{here}/mlp/{part}") for part in ("gate", "up"))
        inputs[f"{here}/mlp/down"] = silu(gate) * up
        for name, x in inputs.items():
            moment = x.T @ x / len(x)
            np.testing.assert_allclose(calibration.moments[name], moment, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(calibration.squares[name], np.diag(moment), rtol=1e-4)


def test_influence_is_how_far_a_layer_turns_the_state(lm, calibration, captured):
    states = [np.asarray(captured["embed/__call__/0"], np.float64)]
    for layer in range(lm.config.n_layers):
        states.append(np.asarray(captured[f"decoder/layers/{layer}/__call__/0/0/0"], np.float64))
    for layer, (a, b) in enumerate(itertools.pairwise(states)):
        cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        assert calibration.influence[layer] == pytest.approx(1 - cosine.mean(), rel=1e-4)


def test_too_few_texts_are_refused(lm):
    with pytest.raises(DataError, match="less than one row"):
        calibrate.Calibration(lm, ["a"], LENGTH)


def test_matrices_multiply_as_their_parameters_do(lm, axes):
    for name, weight in flatten(lm.params).items():
        if not matrices.contraction_axes(axes[name]):
            continue
        split = matrices.split(weight, axes[name])
        np.testing.assert_array_equal(matrices.join(split, weight.shape, axes[name]), weight)
    out = lm.params["decoder"]["layers"]["attention"]["output"]["kernel"]  # [L, N, H, D]
    x = np.random.default_rng(0).normal(size=out.shape[1:3])
    split = matrices.split(out, axes["decoder/layers/attention/output/kernel"])
    want = np.einsum("NH,LNHD->LD", x, np.asarray(out))
    np.testing.assert_allclose(split @ x.reshape(-1), want, atol=1e-5)


@pytest.mark.parametrize("group", [0, 8])
def test_gptq_changes_what_matrices_say_less_than_rounding(lm, axes, calibration, group):
    nearest = quantize.quantize(lm.params, axes, "int4", group)
    made = quantize.gptq(lm.params, axes, calibration.moments, 4, group)
    both = [flatten(tree, is_leaf=quant.is_quantized) for tree in (nearest, made)]
    compared = 0
    for name, weight in flatten(lm.params).items():
        mine = both[1][name]
        if not quant.is_quantized(mine):
            np.testing.assert_array_equal(mine, weight)
            continue
        shapes = [{k: np.shape(v) for k, v in tree[name].items()} for tree in both]
        assert shapes[0] == shapes[1]
        split = matrices.split(weight, axes[name])
        read = matrices.modules(name, len(split))
        if read[0] not in calibration.moments:  # rounded to nearest
            jax.tree.map(np.testing.assert_array_equal, mine, both[0][name])
            continue
        errors = []
        for tree in both:
            found = matrices.split(quant.materialize(tree[name]), axes[name])
            parts = zip(split - found, read, strict=True)
            errors.append(sum(np.trace(d @ calibration.moments[m] @ d.T) for d, m in parts))
        assert errors[1] < errors[0], name
        compared += 1
    assert compared == 7
    eight = quantize.gptq(lm.params, axes, calibration.moments, 8, group)
    close = dataclasses.replace(lm, params=quant.dequantize(eight))
    np.testing.assert_allclose(close.logits(TOKENS), lm.logits(TOKENS), atol=0.05)


@pytest.mark.parametrize(("levels", "tile"), [(7, 0), (7, 8), (127, 0), (127, 16)])
def test_rounding_in_turn_is_that_of_qwix(levels, tile):
    """Theirs runs each step by itself, ours is one program."""
    generator = np.random.default_rng(levels + tile)
    matrix = generator.normal(size=(12, 48)).astype(np.float32)
    x = generator.normal(size=(200, 48)) @ generator.normal(size=(48, 48))
    x[:, 5] = 0  # an input that is never used
    moment = (x.T @ x / 200).astype(np.float32)
    how = gptq_core.qarray.HowToQuantize(
        qtype=f"int{4 if levels == 7 else 8}",
        channelwise_axes=(0,),
        tiled_axes={1: tile} if tile else {},
    )
    with jax.numpy_rank_promotion("allow"):
        # Blocks of a tile: scales are then of weights that have made up for what came before.
        want, _ = gptq_core.quantize_weight(matrix, moment, how, blocksize=tile or 48)
    integers, scales = quantize.round_in_turn(matrix, moment, levels, tile, 0.01)
    assert np.mean(np.asarray(want.qvalue, int) == np.asarray(integers)) > 0.99  # near ties
    np.testing.assert_allclose(scales, want.scale, rtol=1e-3)


def zeros_by_hand(matrix, norms, sparsity):
    out = matrix.copy()
    for row in out:
        order = sorted(range(len(row)), key=lambda i: abs(row[i]) * norms[i])
        for i in order[: int(sparsity * len(row))]:
            row[i] = 0
    return out


def test_wanda_is_the_loop_over_outputs(lm, axes, calibration):
    made = flatten(prune.zero(lm.params, axes, calibration.squares, 0.5, "", "kernel$", "lm_head"))
    for name, weight in flatten(lm.params).items():
        if not name.endswith("kernel") or "lm_head" in name:
            np.testing.assert_array_equal(made[name], weight)
            continue
        split, found = (matrices.split(x, axes[name]) for x in (weight, made[name]))
        for i, module in enumerate(matrices.modules(name, len(split))):
            norms = np.sqrt(calibration.squares[module])
            np.testing.assert_array_equal(found[i], zeros_by_hand(split[i], norms, 0.5))


def test_magnitude_takes_the_smallest_of_each_matrix(lm, axes):
    made = flatten(prune.zero(lm.params, axes, None, 0.3, "", "layers.*kernel$", ""))
    for name, weight in flatten(lm.params).items():
        if not name.endswith("kernel") or "layers" not in name:
            continue
        for was, now in zip(np.asarray(weight), made[name], strict=True):
            lost = np.abs(was[now == 0])
            assert len(lost) == int(0.3 * was.size)
            assert lost.max() <= np.abs(now[now != 0]).min()


@pytest.mark.parametrize("measured", [False, True])
def test_two_of_four_stay(lm, axes, calibration, measured):
    squares = calibration.squares if measured else None
    made = flatten(prune.zero(lm.params, axes, squares, 0.5, "2:4", "kernel$", "lm_head"))
    for name, weight in flatten(lm.params).items():
        if name.endswith("kernel") and "lm_head" not in name:
            split, found = (matrices.split(x, axes[name]) for x in (weight, made[name]))
            assert ((found != 0).reshape(-1, 4).sum(axis=1) == 2).all()
            assert (found[found != 0] == split[found != 0]).all()


def test_hidden_units_that_are_gone_wrote_nothing(lm, axes, calibration):
    """The pruned model says what the whole one does with their rows of `down` set to zero."""
    params, config = prune.drop_hidden(lm.params, axes, lm.config, calibration.squares, 24)
    assert config.d_ff == 24
    pruned = dataclasses.replace(lm, config=config, model=Transformer(config), params=params)
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        lambda leaf: leaf.shape, nn.unbox(parameter_shapes(pruned.model))
    )
    named = dict(flatten(lm.params))
    down = np.array(named["decoder/layers/mlp/down/kernel"])  # [L, F, D]
    for layer in range(len(down)):
        norms = np.sqrt(calibration.squares[f"decoder/layers/{layer}/mlp/down"])
        importance = norms * np.linalg.norm(down[layer], axis=1)
        down[layer][np.argsort(importance)[:-24]] = 0
    named["decoder/layers/mlp/down/kernel"] = down
    whole = dataclasses.replace(lm, params=unflatten(named))
    np.testing.assert_allclose(pruned.logits(TOKENS), whole.logits(TOKENS), atol=1e-4)


def test_a_layer_that_is_gone_adds_nothing(lm, axes, calibration):
    params, config = prune.drop_layers(lm.params, axes, lm.config, calibration.influence, 1)
    assert config.n_layers == 1
    pruned = dataclasses.replace(lm, config=config, model=Transformer(config), params=params)
    named = dict(flatten(lm.params))
    gone = int(np.argmin(calibration.influence))
    for name in ("attention/output/kernel", "mlp/down/kernel"):
        kernel = np.array(named[f"decoder/layers/{name}"])
        kernel[gone] = 0
        named[f"decoder/layers/{name}"] = kernel
    whole = dataclasses.replace(lm, params=unflatten(named))
    np.testing.assert_allclose(pruned.logits(TOKENS), whole.logits(TOKENS), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("magnitude", {"sparsity": 1.0}, "sparsity=1.0"),
        ("magnitude", {"pattern": "4:2"}, "4:2"),
        ("magnitude", {"pattern": "2:5"}, "no multiple of the pattern's 5"),
        ("wanda", {"include": "nothing"}, "nothing"),
        ("wanda", {"include": "embedding"}, "embed/embedding reads is not measured"),
        ("gptq", {"bits": 3}, "bits=3"),
        ("layers", {"layers": 2}, "layers=2 of 2"),
        ("hidden", {"d_ff": 0}, "d_ff=0 of 64"),
    ],
)
def test_wrong_options_are_named(lm, axes, calibration, method, options, says):
    original = methods.Original(lm, axes, lambda: calibration)
    with pytest.raises(ConfigError, match=re.escape(says)):
        methods.METHODS[method](original, **options)


def test_layers_of_several_kinds_are_not_dropped(lm, axes):
    mixed = TransformerConfig(vocab_size=300, n_layers=4, window=8, window_pattern="LG")
    with pytest.raises(ConfigError, match="'LG'"):
        prune.drop_layers(lm.params, axes, mixed, np.ones(4), 2)

# SPDX-License-Identifier: Apache-2.0
"""Adapters: what they add, what they leave alone, what merging them gives."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding, trees
from llm.errors import ConfigError
from llm.models import adapters, lora, quant, tuning
from llm.models.adapters import Adapter
from llm.models.config import TransformerConfig, from_dict, inherit, with_adapter
from llm.models.transformer import Transformer

BASE = TransformerConfig(
    vocab_size=32, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=24, max_length=32
)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32)
SHAPES = {
    "decoder": BASE,
    "moe": dataclasses.replace(BASE, n_experts=4, d_expert=8, n_shared_experts=1, d_ff=0),
    "capacity": dataclasses.replace(BASE, n_experts=4, d_expert=8, moe_dispatch="capacity"),
    "encoder": dataclasses.replace(
        BASE, architecture="encoder", position="learned", head="mlm", norm="layernorm"
    ),
    "encoder_decoder": dataclasses.replace(BASE, architecture="encoder_decoder", position="t5"),
}


def _random(tree, seed=0, pattern=adapters.ADDED):
    """Give the leaves that match random values."""

    def one(name, leaf):
        if not re.search(pattern, name) or name.endswith("lora_m"):
            return leaf
        own = np.random.default_rng([seed, len(name), *name.encode()])
        return jnp.asarray(own.normal(size=leaf.shape) * 0.3, leaf.dtype)

    return trees.map_named(one, tree)


def _start(jit, config, adapter):
    """Return the base's parameters, the adapted config, and its parameters begun on the base."""
    base = jit(lambda: sharding.unbox(Transformer(config).init(jax.random.key(0), TOKENS)))()
    made = with_adapter(config, adapter)
    params = tuning.begin(Transformer(made), base["params"], TOKENS, jax.random.key(1))
    return base["params"], made, params


def _logits(jit, config, params):
    both = config.architecture == "encoder_decoder"
    more = {"encoder_tokens": TOKENS[:, ::-1]} if both else {}
    return jit(lambda p: Transformer(config).apply({"params": p}, TOKENS, **more))(params)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("decoder", "lora"),
        ("encoder", "dora"),
        pytest.param("decoder", "dora", marks=pytest.mark.slow),
        pytest.param("moe", "lora", marks=pytest.mark.slow),
        pytest.param("capacity", "lora", marks=pytest.mark.slow),
        pytest.param("encoder_decoder", "lora", marks=pytest.mark.slow),
    ],
)
def test_updates_start_at_nothing_and_merge(jit, shape, name):
    adapter = Adapter(name=name, rank=3, alpha=5.0)
    config = SHAPES[shape]
    base, made, params = _start(jit, config, adapter)
    expected = _logits(jit, config, base)
    assert jnp.abs(_logits(jit, made, params) - expected).max() <= (1e-6 if name == "dora" else 0)
    for key, leaf in trees.flatten(base).items():
        np.testing.assert_array_equal(trees.flatten(params)[key], leaf)
    changed = _random(params)
    got = _logits(jit, made, changed)
    assert jnp.abs(got - expected).max() > 1e-2
    plain, merged = tuning.merge(made, changed)
    assert plain == config
    np.testing.assert_allclose(_logits(jit, plain, merged), got, atol=1e-5)


def test_every_map_of_the_pattern_is_covered(jit):
    _, _, params = _start(jit, SHAPES["moe"], Adapter(name="lora", targets="(query|moe/up)$"))
    added = [key for key in trees.flatten(params) if re.search(adapters.ADDED, key)]
    at = "decoder/layers"
    expected = [f"{at}/attention/query/lora_{x}" for x in "ab"]
    assert added == [*expected, f"{at}/moe/up_lora_a", f"{at}/moe/up_lora_b"]


def test_norm_of_the_sum_is_that_of_the_formed_matrix():
    rng = np.random.default_rng(0)
    m = lora.maps("BTNH,NHD->BTD")
    w, a, b = (rng.normal(size=s) for s in ((3, 4, 5), (3, 4, 2), (2, 5)))
    formed = w + 0.7 * np.einsum("NHr,rD->NHD", a, b)
    expected = np.sqrt((formed**2).sum(axis=(0, 1)))
    arrays = (jnp.asarray(x, jnp.float32) for x in (w, a, b))
    np.testing.assert_allclose(lora.column_norm(m, *arrays, 0.7), expected, rtol=1e-5)


def test_dropout_has_one_mask_per_example(jit):
    adapter = Adapter(name="lora", dropout=0.5)
    _, made, params = _start(jit, BASE, adapter)
    params = _random(params)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    model = Transformer(made)
    run = jit(lambda t, k: model.apply({"params": params}, t, dropout_keys=k))
    both, swapped = run(TOKENS, keys), run(TOKENS[::-1], keys[::-1])
    np.testing.assert_allclose(both[0], swapped[1], atol=1e-6)
    assert jnp.abs(both - run(TOKENS, keys[::-1])).max() > 1e-3
    assert jnp.abs(both - _logits(jit, made, params)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("prefix", "learned"),
        *(
            pytest.param(name, position, marks=pytest.mark.slow)
            for name in ("prefix", "prompt")
            for position in ("rope", "learned", "alibi")
            if (name, position) != ("prefix", "learned")
        ),
    ],
)
def test_virtual_tokens_come_before_every_document(jit, name, position):
    """Packed documents, windows of decoding and backends see the same prefix."""
    config = dataclasses.replace(BASE, position=position)
    base, made, params = _start(jit, config, Adapter(name=name, length=3))
    params = _random(params)
    model = Transformer(made)
    whole = _logits(jit, made, params)
    assert jnp.abs(whole - _logits(jit, config, base)).max() > 1e-3
    packed = {
        "tokens": TOKENS.reshape(1, 16),
        "segments": np.repeat([[1, 2]], 8, axis=1),
        "positions": np.tile(np.arange(8), 2)[None],
    }
    run = jit(lambda p, model, **x: model.apply({"params": p}, **x), static_argnums=1)
    both = run(params, model, **packed).reshape(2, 8, -1)
    np.testing.assert_allclose(both, whole, atol=1e-5)
    chunked = Transformer(dataclasses.replace(made, attention="chunked", attention_chunk=4))
    np.testing.assert_allclose(run(params, chunked, **packed).reshape(2, 8, -1), whole, atol=1e-5)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_virtual_tokens_with_a_cache(jit, name):
    from llm.models.cache import init_cache

    _, made, params = _start(jit, BASE, Adapter(name=name, length=3))
    params = _random(params)
    model = Transformer(made)
    cache = init_cache(made, 2, 8)
    run = jit(lambda t, c: model.apply({"params": params}, t, cache=c))
    first, cache = run(TOKENS[:, :4], cache)
    second, cache = run(TOKENS[:, 4:], cache)
    whole = _logits(jit, made, params)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-5)


def test_prefix_in_an_encoder(jit):
    config = dataclasses.replace(SHAPES["encoder"], max_length=32)
    _, made, params = _start(jit, config, Adapter(name="prefix", length=3))
    assert made.max_length == 29
    assert trees.flatten(params)["encoder/layers/attention/prefix_keys"].shape == (2, 3, 2, 4)
    assert jnp.isfinite(_logits(jit, made, params)).all()


@pytest.mark.parametrize(
    ("shape", "method", "limit"),
    [
        ("decoder", "int4", 0.25),
        pytest.param("decoder", "int8", 0.02, marks=pytest.mark.slow),
        pytest.param("moe", "int4", 0.25, marks=pytest.mark.slow),
    ],
)
def test_a_base_of_integers(jit, shape, method, limit):
    config = SHAPES[shape]
    base, made, params = _start(jit, config, Adapter(name="lora", base=method, block=8))
    named = trees.flatten(params)
    assert not any(key.endswith("/kernel") for key in named if "/layers/" in key)
    assert "decoder/layers/moe/router_kernel" in named or shape == "decoder"
    got = _logits(jit, made, params)
    assert 0 < jnp.abs(got - _logits(jit, config, base)).max() < limit
    plain, merged = tuning.merge(made, params)
    np.testing.assert_allclose(_logits(jit, plain, merged), got, atol=1e-5)


def test_rounding_is_to_nearest_in_blocks():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 16)).astype(np.float32)
    for method, largest in (("int8", 127), ("int4", 7)):
        stored = quant.store(jnp.asarray(weight), method, 8)
        assert stored["scale"].shape == (3, 2)
        scale = np.repeat(np.abs(weight.reshape(3, 2, 8)).max(-1) / largest, 8, axis=1)
        expected = np.round(weight / scale) * scale
        np.testing.assert_allclose(quant.materialize(stored), expected, atol=1e-6)


def test_memory_of_a_frozen_base_by_shapes():
    """Bytes of Llama-2-7B's layers: float32 4, int8 1, int4 half a byte, and the scales."""
    from llm.models.presets import config

    def layers(base):
        made = with_adapter(config("llama2_7b"), Adapter(name="lora", base=base))
        shapes = jax.eval_shape(Transformer(made).init, jax.random.key(0), TOKENS)["params"]
        named = trees.flatten(sharding.unbox(shapes))
        frozen = {k: v for k, v in named.items() if "kernel" in k and "/layers/" in k}
        return trees.size_bytes(frozen)

    full = layers("full")
    assert full == 4 * 6_476_005_376
    assert layers("int8") / full == pytest.approx(1 / 4 + 1 / 64)
    assert layers("int4") / full == pytest.approx(1 / 8 + 1 / 64)


def test_a_base_is_kept_bit_by_bit_when_a_model_without_its_head_begins():
    config = dataclasses.replace(BASE, tied_embeddings=False)
    made = dataclasses.replace(config, head="sequence", n_classes=3)
    base = sharding.unbox(Transformer(config).init(jax.random.key(0), TOKENS)["params"])
    params = tuning.begin(Transformer(made), base, TOKENS, jax.random.key(1))
    assert trees.flatten(params)["classifier/kernel"].shape == (16, 3)
    assert "lm_head" not in params
    broken = {key: value for key, value in base.items() if key != "embed"}
    assert "embed" not in tuning.begin(Transformer(made), broken, TOKENS, jax.random.key(1))


def test_inheriting():
    inherited = dataclasses.asdict(
        dataclasses.replace(BASE, position="learned", adapter=Adapter(name="prefix", length=4))
    )
    kept = inherit({"adapter": {"name": "inherit"}}, inherited)
    assert kept["adapter"]["name"] == "prefix"
    assert inherit({}, inherited)["adapter"]["length"] == 4
    plain = inherit({"adapter": {"name": "lora"}}, inherited)
    assert (plain["adapter"]["name"], plain["max_length"]) == ("lora", 36)
    assert from_dict(plain).adapter.rank == 8


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapter": {"name": "loora"}}, "lora"),
        ({"adapter": {"nam": "lora"}}, "nam"),
        ({"adapter": {"rank": 0}}, "rank=0"),
        ({"adapter": {"targets": "("}}, "regular expression"),
        ({"adapter": {"name": "prompt"}, "architecture": "encoder"}, "prefix"),
        ({"adapter": {"name": "dora"}, "n_experts": 4}, "experts"),
        ({"labels": ("a", "b"), "n_classes": 3}, "labels"),
    ],
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(ConfigError, match=words):
        from_dict(fields)


def test_virtual_tokens_do_not_merge(jit):
    _, made, params = _start(jit, BASE, Adapter(name="prefix", length=2))
    with pytest.raises(ConfigError, match="virtual tokens"):
        tuning.merge(made, params)

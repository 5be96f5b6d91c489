# SPDX-License-Identifier: Apache-2.0
"""Beginning on a base over a mesh: adapters, integers and heads are laid out as their weights."""

import re

import jax
import numpy as np
import pytest

from llm.core import sharding, trees
from llm.errors import ConfigError
from llm.models.adapters import ADDED, Adapter
from llm.models.config import TransformerConfig, with_adapter
from llm.models.transformer import Transformer
from llm.train import initial

BASE = TransformerConfig(
    vocab_size=32, n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_ff=32, max_length=32
)
TOKENS = np.arange(64).reshape(8, 8) % 32


@pytest.fixture(scope="module")
def base():
    return sharding.unbox(Transformer(BASE).init(jax.random.key(0), TOKENS)["params"])


@pytest.fixture
def layout():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with sharding.use_layout(mesh) as made:
        yield made


@pytest.mark.parametrize("kept", ["full", "int4"])
def test_adapters_are_laid_out_as_their_weights(base, layout, kept):
    config = with_adapter(BASE, Adapter(name="dora", rank=3, base=kept, block=4))
    model = Transformer(config)
    bones = initial.skeleton(model, layout)
    trained, _ = bones.split(bones.shapes)
    assert all(re.search(ADDED, name) for name in trees.flatten(trained))
    params = initial.start_parameters(base, model, bones, layout, 0, "base")
    named = trees.flatten(params)
    up = "decoder/layers/mlp/up"
    assert named[f"{up}/lora_a"].sharding.shard_shape((2, 16, 3)) == (2, 8, 3)
    assert named[f"{up}/lora_b"].sharding.shard_shape((2, 3, 32)) == (2, 3, 16)
    if kept == "int4":
        assert named[f"{up}/kernel/q4"].sharding.shard_shape((2, 16, 16)) == (2, 8, 8)
    got = jax.jit(lambda p: model.apply({"params": p}, TOKENS))(params)
    expected = Transformer(BASE).apply({"params": base}, TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-5 if kept == "full" else 0.3)


def test_a_base_that_does_not_fit_is_named(base, layout):
    model = Transformer(with_adapter(BASE, Adapter(name="lora")))
    bones = initial.skeleton(model, layout)
    wrong = {**base, "more": {"kernel": np.zeros(3)}}
    with pytest.raises(ConfigError, match=r"more/kernel is .* there and absent here"):
        initial.start_parameters(wrong, model, bones, layout, 0, "base")
    with pytest.raises(ConfigError, match=r"trains|matches no parameter"):
        initial.skeleton(model, layout, "nothing$")


def test_weights_of_integers_are_not_trained(layout):
    model = Transformer(with_adapter(BASE, Adapter(name="lora", base="int8")))
    with pytest.raises(ConfigError, match="holds integers"):
        initial.skeleton(model, layout, "mlp")

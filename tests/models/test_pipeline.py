# SPDX-License-Identifier: Apache-2.0
"""How a batch goes through pipeline stages: turns, bubble, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding
from llm.core.sharding import unbox
from llm.core.trees import map_named
from llm.errors import ConfigError
from llm.models import pipeline
from llm.models.adapters import Adapter
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer


def layout(choices=None, **mesh):
    return sharding.make_layout(sharding.make_mesh(mesh), choices)


def simulate(plan):
    """Count by hand: every stage takes what is ready, one microbatch a turn, in order."""
    done, turn = {}, 0
    order = [(r, m) for r in range(plan.repeats) for m in range(plan.microbatches)]
    while len(done) < plan.stages * len(order):
        for stage in range(plan.stages):
            for repeat, micro in order:
                before = (
                    (stage - 1, repeat, micro) if stage else (plan.stages - 1, repeat - 1, micro)
                )
                first = stage == 0 and repeat == 0
                ready = first or done.get(before, turn) < turn
                if (stage, repeat, micro) not in done and ready:
                    done[stage, repeat, micro] = turn
                    break
        turn += 1
    return turn


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 8, 1), (4, 4, 3), (3, 5, 2)])
def test_turns_and_bubble(shape):
    plan = pipeline.Schedule(*shape)
    assert plan.turns == simulate(plan)
    S, M, R = shape
    assert plan.bubble == pytest.approx((S - 1) / (R * M + S - 1))


def test_microbatches_are_the_most_up_to_four_per_stage_or_as_asked():
    assert pipeline.schedule(layout(data=4, stage=2), 4, 64) == (2, 8, 1)
    assert pipeline.schedule(layout(data=4, stage=2), 4, 24) == (2, 6, 1)
    choices = {"microbatches": 2, "repeats": 2}
    assert pipeline.schedule(layout(choices, data=4, stage=2), 4, 64) == (2, 2, 2)
    assert pipeline.schedule(layout(data=8), 4, 64) is None


def test_adapters_are_found_by_their_paths_in_stages():
    """Low-rank updates chosen by a whole path, on integer weights, are applied in stages too."""
    targets = "^decoder/layers/attention/(query|value)$"
    adapter = Adapter(name="lora", rank=2, targets=targets, base="int8")
    config = TransformerConfig(
        vocab_size=32, n_layers=4, d_model=16, n_heads=2, n_kv_heads=2, d_ff=32, adapter=adapter
    )
    model = Transformer(config)
    tokens = np.arange(32, dtype=np.int32).reshape(8, 4)
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])

    def filled(name, leaf):
        noise = jax.random.normal(jax.random.key(1), leaf.shape)
        return noise if name.endswith("lora_b") else leaf

    params = map_named(filled, params)
    apply = jax.jit(lambda p: model.apply({"params": p}, tokens))
    whole = apply(params)
    with sharding.use_layout(layout(data=2, stage=4)):
        found = jax.jit(lambda p: model.apply({"params": p}, tokens))(params)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    plain = map_named(lambda name, x: x * 0 if name.endswith("lora_b") else x, params)
    assert float(jnp.max(jnp.abs(apply(plain) - whole))) > 1e-2


@pytest.mark.parametrize(
    ("choices", "layers", "batch", "says"),
    [
        ({}, 5, 64, "5 layers do not divide into mesh.stage=2 x sharding.repeats=1.*\n.*are 4"),
        ({"repeats": 2}, 6, 64, r"mesh.stage=2 x sharding.repeats=2"),
        ({"microbatches": 3}, 4, 64, "3 microbatches.*\n.*can be 2, 4, 8, 16"),
        ({}, 4, 4, "2 microbatches for mesh.stage=2.*\n.*a multiple of 8"),
    ],
)
def test_refusals(choices, layers, batch, says):
    with pytest.raises(ConfigError, match=says):
        pipeline.schedule(layout(choices, data=4, stage=2), layers, batch)

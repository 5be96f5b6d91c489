# SPDX-License-Identifier: Apache-2.0
"""Every way to lay training over eight devices computes what one device does.

Losses, every gradient leaf and the parameters after two updates agree to 1e-5, on packed rows with
padding and uneven weights, with dropout on, and where the name says so with accumulated gradients.
"""

import functools
import re

import jax
import numpy as np
import pytest

from llm.core import sharding, trees
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.train import initial, run
from llm.train.objective import cross_entropy
from llm.train.step import make_step
from tests.train.test_step import rows, same

SIZES = {
    "vocab_size": 64,
    "n_layers": 4,
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 64,
    "max_length": 16,
    "dropout": 0.1,
}
EXPERTS = {"n_experts": 4, "experts_per_token": 2, "d_expert": 32}
MODELS = {
    "dense": SIZES,
    "moe": {**SIZES, **EXPERTS, "n_shared_experts": 1},
    "moe_capacity": {**SIZES, **EXPERTS, "moe_dispatch": "capacity", "capacity_factor": 1.0},
}

LAYERS = {"4,32,64", "2,32,64", "32,64", "4,64,32", "2,64,32", "64,32"}  # shapes of weights

# name -> (model, mesh, sharding section, microbatches)
CASES = {
    "dp": ("dense", {"data": 8}, {}, 1),
    "zero1": ("dense", {"data": 8}, {"zero1": True}, 1),
    "fsdp": ("dense", {"fsdp": 8}, {"offload": True}, 1),
    "tp": ("dense", {"data": 4, "tensor": 2}, {}, 1),
    "sp": ("dense", {"data": 4, "tensor": 2}, {"sequence": True}, 1),
    "cp": ("dense", {"data": 2, "context": 4}, {}, 1),
    "pp": ("dense", {"data": 4, "stage": 2}, {}, 1),
    "moe-dp": ("moe", {"data": 8}, {}, 1),
    "moe-ep": ("moe", {"data": 2, "expert": 4}, {}, 1),
    "moe-cp-tp": ("moe", {"data": 2, "context": 2, "tensor": 2}, {}, 1),
    "moe-pp": ("moe", {"data": 4, "stage": 2}, {}, 1),
    "moe-ep-capacity": ("moe_capacity", {"context": 2, "expert": 4}, {}, 1),
    "fsdp-tp-accumulated": ("dense", {"data": 2, "fsdp": 2, "tensor": 2}, {}, 2),
    "fsdp-cp-sp": ("dense", {"fsdp": 2, "context": 2, "tensor": 2}, {"sequence": True}, 1),
    "pp-cp-fsdp": ("dense", {"fsdp": 2, "context": 2, "stage": 2}, {"microbatches": 4}, 1),
    "circular-zero1-tp": (
        "dense",
        {"data": 2, "tensor": 2, "stage": 2},
        {"repeats": 2, "zero1": True},
        1,
    ),
    "moe-ep-fsdp-accumulated": ("moe", {"data": 2, "fsdp": 2, "expert": 2}, {}, 2),
    "moe-ep-pp-tp": ("moe", {"expert": 2, "stage": 2, "tensor": 2}, {}, 1),
}


@functools.cache
def update(name, mesh=(("data", 1),), choices=(), microbatches=1):
    """Take two SGD steps on a mesh; return losses, first gradients and parameters as NumPy, and
    the compiled program's text."""
    sizes = dict(mesh)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    model = Transformer(TransformerConfig(**MODELS[name]))
    made = sharding.make_layout(sharding.make_mesh(sizes, devices), dict(choices))
    with sharding.use_layout(made) as layout:
        bones = initial.skeleton(model, layout)
        schedule = {"name": "constant", "peak": 0.1}
        choice = run.make_optimizer(
            10, bones.axes, schedule, name="sgd", clip_norm=0.0, momentum=0.9
        )
        objective = cross_entropy(model, z_loss=1e-3)
        where = initial.placement(objective, choice, bones, layout, ema=False)
        params = initial.fresh_parameters(model, bones, layout, seed=1)
        state, frozen = initial.begin(params, objective, choice, bones, where)
        step = jax.jit(
            make_step(
                objective,
                choice,
                microbatches=microbatches,
                place=where.update,
                offloaded=layout.choices.offload,
            ),
            out_shardings=(where.state, None),
        )
        place = run.placer(layout.mesh)
        step = step.lower(state, frozen, place(rows(0)), jax.random.key(3)).compile()
        losses = []
        for number in range(2):
            state, metrics = step(state, frozen, place(rows(number)), jax.random.key(3))
            losses.append(float(metrics["loss"]))
            if number == 0:  # the first momentum is the gradient
                grads = jax.device_get(state.opt_state)
        params = jax.device_get(state.params)
        return losses, trees.flatten(grads), trees.flatten(params), step.as_text()


def on_mesh(case):
    name, mesh, choices, microbatches = CASES[case]
    return update(name, tuple(mesh.items()), tuple(choices.items()), microbatches)


SLOW = ("moe-dp", "moe-cp-tp", "moe-ep-fsdp-accumulated")  # what other cases cover in part


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES],
)
def test_mesh_equals_one_device(case):
    name, _, _, microbatches = CASES[case]
    same(update(name, microbatches=microbatches), on_mesh(case))


def shapes(case, operation):
    """Return the shapes of what an operation of a case's program gives."""
    text = on_mesh(case)[3]
    return {found[1] for found in re.finditer(rf"= \w+\[([\d,]*)\]\S* {operation}\(", text)}


def test_programs_move_what_they_should():
    """Equal numbers do not show that anything was split: look at what the programs send."""
    assert not shapes("dp", "collective-permute") and not shapes("dp", "all-gather") & LAYERS
    # The up-projection [L, D, F] is updated in eighths and gathered once; FSDP gathers layers.
    assert "4,32,64" in shapes("zero1", "all-gather")
    assert "32,64" in shapes("fsdp", "all-gather") or "1,32,64" in shapes("fsdp", "all-gather")
    # Keys go round in shares of T / 4 = 4, states are never gathered: [B / 2, 4, K, H].
    assert "8,4,2,8" in shapes("cp", "collective-permute")
    assert not {"8,16,2,8", "8,16,4,8"} & shapes("cp", "all-gather")
    # Stages hand on a microbatch [1, 1, T, D] and keep their weights.
    assert "1,1,16,32" in shapes("pp", "collective-permute")
    assert not shapes("pp", "all-gather") & LAYERS

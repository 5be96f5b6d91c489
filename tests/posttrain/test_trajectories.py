# SPDX-License-Identifier: Apache-2.0
"""Fifty steps of SFT and DPO on a tiny Llama, loss by loss as TRL's trainers made them.

`tests/goldens/make_trajectories.py` stored TRL's losses: the same weights, rows, order and AdamW.
"""

import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import llm
from llm.core import trees
from llm.posttrain import preference
from llm.train import objective as objectives
from llm.train.settings import make_optimizer
from llm.train.step import Frozen, init_state, make_step

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
sys.path.insert(0, str(GOLDENS))
hf_cases = importlib.import_module("hf_cases")
cases = importlib.import_module("posttrain_cases")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The tiny Llama with its seeded weights."""
    with np.load(GOLDENS / "hf" / "llama.npz") as file:
        about = json.loads(str(file["about"]))
    place = tmp_path_factory.mktemp("llama")
    (place / "config.json").write_text(json.dumps(about["config"]))
    arrays = {key: hf_cases.seeded(key, tuple(shape)) for key, shape in about["shapes"].items()}
    save_file(arrays, place / "model.safetensors", metadata={"format": "pt"})
    return llm.load(place)


def batches(sides):
    """Yield 50 batches; `sides` maps a prefix to which answer is there."""
    for step in range(cases.STEPS):
        numbers = range(step * cases.ROWS, (step + 1) * cases.ROWS)
        batch = {}
        for prefix, which in sides.items():
            rows = [cases.side(number, which) for number in numbers]
            batch |= {prefix + name: np.stack([row[name] for row in rows]) for name in rows[0]}
        yield batch


def losses(start, objective, sides):
    """Train, and return the loss of every step."""
    options = dict(cases.OPTIMIZER)
    schedule = {"name": "constant", "peak": options.pop("peak")}
    clip = options.pop("clip")
    axes = {
        name: ("layers" if "/layers/" in name else None, *(None,) * (leaf.ndim - 1))
        for name, leaf in trees.flatten(start.params).items()
    }
    optimizer = make_optimizer(cases.STEPS, axes, schedule, name="adamw", clip_norm=clip, **options)
    params = jax.tree.map(np.asarray, start.params)
    frozen = Frozen({}, objective.init(params))
    state = init_state(params, optimizer, False)
    step = jax.jit(make_step(objective, optimizer))
    found = []
    for batch in batches(sides):
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        found.append(float(metrics["loss"]))
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "build", "sides"),
    [
        ("sft", objectives.cross_entropy, {"": 1}),
        (
            "dpo",
            lambda model: preference.dpo(model, beta=cases.BETA),
            {"chosen_": 1, "rejected_": 2},
        ),
    ],
)
def test_fifty_steps(name, build, sides, start):
    with np.load(GOLDENS / cases.TRAJECTORIES) as file:
        golden = file[name]
    found = losses(start, build(start.model), sides)
    assert found[-1] < 0.5 * found[0]
    assert np.abs(found - golden).max() <= 1e-4

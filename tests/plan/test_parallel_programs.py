# SPDX-License-Identifier: Apache-2.0
"""The real TPU compiler takes every kind of split, and its programs send what they should."""

import re

import pytest

from configs import common
from llm.plan import assembly, compiler
from llm.plan.topology import described_devices, parse

SIZES = {
    "n_layers": 4,
    "d_model": 512,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 64,
    "d_ff": 1024,
    "vocab_size": 2048,
    "max_length": 8192,
}

# name -> (mesh, sharding section, further fields of the model, length, slices)
CASES = {
    "ring": ({"context": 4, "fsdp": 2}, {}, {}, 8192, 1),
    "stages": ({"stage": 4, "fsdp": 2}, {}, {}, 1024, 1),
    "circular": ({"stage": 2, "data": 4}, {"repeats": 2, "zero1": True}, {}, 1024, 1),
    "experts": (
        {"expert": 4, "fsdp": 2},
        {},
        {"n_experts": 8, "experts_per_token": 2, "d_expert": 512},
        1024,
        1,
    ),
    "experts-in-stages": (
        {"expert": 2, "stage": 2, "tensor": 2},
        {},
        {"n_experts": 8, "experts_per_token": 2, "d_expert": 512},
        1024,
        1,
    ),
    "sequence": ({"data": 4, "tensor": 2}, {"sequence": True, "zero1": True}, {}, 1024, 1),
    "slices": ({"data": 2, "dcn": 2, "fsdp": 8}, {}, {}, 1024, 2),
}


def program(case):
    mesh, choices, fields, length, slices = CASES[case]
    model = common.model("llama2_7b", dtype="bfloat16", remat="full", **{**SIZES, **fields})
    config = common.training(model, steps=100, batch_size=32, length=length)
    for section, values in ((config.mesh, {"data": 1, **mesh}), (config.sharding, choices)):
        for key, value in values.items():
            section[key] = value
    devices = described_devices(parse("v5p:2x2x2"), slices)
    return compiler.lower(assembly.assemble(config, devices)).compile().as_text()


def shapes(text, operation):
    """Return the dimensions of what an operation gives, in its plain and started forms."""
    lines = [line for line in text.splitlines() if re.search(rf" {operation}(-start)?\(", line)]
    return {found for line in lines for found in re.findall(r"\w+\[([\d,]+)\]", line)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_program(case):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (extra `tpu`)")
    text = program(case)
    assert "Involuntary full rematerialization" not in text
    if case == "ring":
        assert shapes(text, "collective-permute")
        # [B / 2, T, heads, H]: no device is sent the whole sequence's keys.
        assert not any(",8192,4,64" in shape for shape in shapes(text, "all-gather"))
    if case in ("stages", "circular", "experts-in-stages"):
        assert shapes(text, "collective-permute")
    if case.startswith("experts"):
        assert shapes(text, "ragged-all-to-all")
    if case == "sequence":
        assert "reduce-scatter" in text
    if case == "slices":
        assert shapes(text, "all-reduce") or shapes(text, "reduce-scatter")

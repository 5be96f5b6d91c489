# SPDX-License-Identifier: Apache-2.0
"""The real TPU compiler takes the shipped configs: they fit, with the kernel, without surprises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import common
from llm.core import sharding
from llm.generate import guessing, programs, sampling
from llm.models.config import TransformerConfig
from llm.models.paged import BLOCK, PAGE, init_pages
from llm.models.transformer import Transformer
from llm.plan import assembly, compiler
from llm.plan.topology import described_devices, parse
from llm.plan.topology import memory as chip_memory
from llm.train import initial

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

# config -> (topology, rows, length), in one microbatch: the programs of docs/performance.md.
TRAINING = {
    "llama32_1b": ("v5e:4x4", 32, 2048),
    "llama2_7b": ("v5p:2x2x4", 32, 2048),
    "llama31_8b": ("v6e:4x4", 16, 8192),
    "mixtral_8x7b": ("v5p:4x4x4", 128, 4096),
    "llama2_70b": ("v5p:4x4x8", 256, 4096),
}


def plan(name):
    """Run the command with all of the compiler's warnings; return its answer and those."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (extra `tpu`)")
    topology, rows, length = TRAINING[name]
    options = {"train.batch_size": rows, "train.microbatches": 1, "data.length": length}
    done = subprocess.run(
        [
            *(sys.executable, "scripts/plan.py", f"--config=configs/pretrain/{name}.py"),
            *(f"--topology={topology}", "--compile", "--json"),
            *(f"--config.{key}={value}" for key, value in options.items()),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            **dict.fromkeys(("TPU_STDERR_LOG_LEVEL", "TPU_MIN_LOG_LEVEL"), "0"),
            "TF_CPP_MIN_LOG_LEVEL": "0",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.parametrize("name", TRAINING)
def test_training_program(name):
    found, warnings = plan(name)
    assert found["source"] == "compiler"
    assert found["fits"] is True
    assert found["compiled"]["kernels"] > 0  # the Pallas attention kernel is in the program
    assert found["compiled"]["whole_states_gathered"] == []
    assert re.search(r"^W\d{4} ", warnings, re.MULTILINE)  # the compiler's warnings are seen
    assert "Involuntary full rematerialization" not in warnings
    compiled, estimated = found["bytes_per_chip"], found["analytic"]
    assert estimated["arguments"] == pytest.approx(compiled["arguments"], rel=0.005)
    assert estimated["temp"] == pytest.approx(compiled["temp"], rel=0.25)
    assert estimated["total"] == pytest.approx(compiled["total"], rel=0.10)


def decoding_program(config, topology, mesh, rows, length):
    """Compile the engine's decode step for described devices."""
    devices = described_devices(parse(topology))
    layout = sharding.make_layout(sharding.make_mesh(mesh, devices))
    model = Transformer(config)
    whole = sharding.replicated(layout.mesh)
    each = -(-length // (PAGE * BLOCK)) * BLOCK  # pages of a row

    def shaped(tree, place=None):
        places = jax.tree.map(lambda x: whole, tree) if place is None else place
        return jax.tree.map(
            lambda x, p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=p), tree, places
        )

    def integers(*shape):
        return jax.ShapeDtypeStruct(shape, "int32", sharding=whole)

    settings = sampling.rows([sampling.Settings()] * rows, 16)
    sent = guessing.Rows(
        table=integers(rows, each),
        token=integers(rows),
        position=integers(rows),
        left=integers(rows),
        history=integers(rows, length),
        guess=jax.ShapeDtypeStruct((rows,), "bool", sharding=whole),
        stop_ids=integers(rows, 8),
        settings=shaped(settings),
    )
    bones = initial.skeleton(model, layout)
    pages = jax.eval_shape(lambda: init_pages(config, rows * each))
    axes = (None, None, "kv_heads", None, None)
    spec = sharding.resolve(axes, layout.activations, layout.mesh, pages.k.shape, "pages")
    heads = jax.tree.map(lambda x: jax.NamedSharding(layout.mesh, spec), pages)
    params = shaped(bones.shapes, bones.shardings)
    with sharding.use_layout(layout):
        lowered = programs._decode.lower(
            (model,), (params,), (shaped(pages, heads),), sent, integers(), 1
        )
    return compiler.read(lowered.compile())


@pytest.mark.parametrize(
    ("topology", "mesh"), [("v6e:1x1", {"data": 1}), ("v6e:2x2", {"data": 1, "tensor": 4})]
)
def test_decoding_program_of_8b(topology, mesh):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (extra `tpu`)")
    fields = dict(common.model("llama31_8b", dtype="bfloat16", param_dtype="bfloat16"))
    config = TransformerConfig(**fields).validate()
    found = decoding_program(config, topology, mesh, 32, 2048)
    limit = chip_memory(parse(topology))
    weights, cached = 2 * 8.03e9, 32 * 2048 * 32 * 2 * 8 * 128 * 2
    parts = mesh.get("tensor", 1)
    assert found.arguments == pytest.approx((weights + cached) / parts, rel=0.02)
    assert found.total < limit
    # The pages are written where they are: nothing as large as half of them besides.
    assert found.temp < cached / parts / 2


def test_a_mesh_may_take_part_of_an_axis_of_the_torus():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (extra `tpu`)")
    devices = described_devices(parse("v5p:4x4x8"))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 64, "tensor": 2}, devices)
    assert (mesh.shape["fsdp"], mesh.shape["tensor"]) == (64, 2)
    assert len({device.id for device in mesh.devices.flat}) == 128


SMALL = {
    "n_layers": 4,
    "d_model": 512,
    "n_heads": 8,
    "n_kv_heads": 4,
    "head_dim": 64,
    "d_ff": 1024,
    "vocab_size": 2048,
}
# name -> (fields of the model, what stands in the program)
VARIANTS = {
    "windows": ({"window": 512, "window_pattern": "LG"}, r"tpu_custom_call"),
    "save": ({"remat": "save", "remat_names": ("gate", "context")}, r"tpu_custom_call"),
    "offload": ({"remat": "offload"}, r"S\(5\)"),  # the host's memory
    "int8": ({"matmul": "int8"}, r"s8\[[\d,]+\]"),
    "fp8": ({"matmul": "fp8"}, r"f8e4m3fn\[[\d,]+\]"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_ways_to_run_a_layer_compile_for_packed_rows(name):
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (extra `tpu`)")
    fields, expected = VARIANTS[name]
    fields = {"dtype": "bfloat16", "remat": "full", **SMALL, **fields}
    model = common.model("llama2_7b", **fields)
    config = common.training(model, steps=100, batch_size=8, length=2048)
    config.mesh.data, config.mesh.fsdp = 1, -1
    made = assembly.assemble(config, described_devices(parse("v6e:2x2")))
    text = compiler.lower(made).compile().as_text()
    # Forwards, and two backwards; with windows once for either kind of layer.
    kernels = len(re.findall(r'custom_call_target="tpu_custom_call"', text))
    assert kernels >= (6 if name == "windows" else 3)
    assert re.search(expected, text)

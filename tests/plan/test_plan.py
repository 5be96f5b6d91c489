# SPDX-License-Identifier: Apache-2.0
"""Plans against compiled programs, hand-made sums, and machines that are too small."""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import common
from llm.errors import ConfigError
from llm.plan import assembly, compiler, memory, roofline, search, stage
from llm.plan.topology import parse

ROOT = Path(__file__).resolve().parents[2]
DPO = {**assembly.OBJECTIVES, "dpo": "llm.posttrain.preference:dpo"}


def make_config(preset="llama2_7b", batch=32, length=2048, mesh=None, **model):
    fields = {"dtype": "bfloat16", "remat": "full", **model}
    config = common.training(
        common.model(preset, **fields), steps=1000, batch_size=batch, length=length
    )
    for axis, size in (mesh or {"data": 1, "fsdp": -1}).items():
        config.mesh[axis] = size
    return config


def tiny(**changes):
    sizes = {"d_model": 64, "n_layers": 2, "d_ff": 128, "vocab_size": 256, "dtype": "float32"}
    sizes |= {"remat": "none", "attention": "xla"}
    return make_config(
        "tiny", 16, 128, **{"mesh": {"data": 2, "fsdp": 2, "tensor": 2}, **sizes, **changes}
    )


def test_llama_2_7b_on_sixteen_chips():
    found = stage.plan(make_config(), parse("v5p:2x2x4"))
    assert found["n_params"] == 6_738_415_616
    assert found["n_chips"] == 16
    assert found["tokens_per_step"] == 32 * 2048
    # 6 N for the matmuls (no embedding lookup) and causal attention over rows of 2048.
    matmuls = 6 * (6_738_415_616 - 32000 * 4096 - 65 * 4096)
    attention = 3 * 4 * 32 * 4096 * (2048 + 1) / 2
    assert found["flops_per_token"] == pytest.approx(matmuls + attention, rel=1e-9)
    sizes = found["bytes_per_chip"]
    # Weights and two moments in float32 over 16 chips; the norms are on each of them.
    norms = 65 * 4096
    state = 12 * ((6_738_415_616 - norms) / 16 + norms)
    batch = 2 * 2048 * 5 * 4
    assert sizes["arguments"] == pytest.approx(state + batch, abs=64)
    assert sizes["total"] == sizes["arguments"] + sizes["temp"]
    assert found["fits"] is True
    assert found["source"] == "analytic"


# GB of arguments, and held at once in all, as the TPU compiler has them (libtpu 0.0.52; the
# first is the same with 0.0.42, the next two and the last three were compiled with that one).
RING = {"data": 1, "context": 16, "fsdp": 4}
COMPILED = [
    ("llama2_7b", 32, 2048, {"data": 1, "fsdp": -1}, 0, "v5p:2x2x4", 5.0569, 9.6335),
    ("llama2_7b", 96, 2048, {"data": 1, "fsdp": -1}, 512, "v5e:4x4", 5.0571, 13.4220),
    ("llama32_1b", 32, 2048, {"data": 1, "fsdp": -1}, 512, "v5e:4x4", 0.9277, 2.9488),
    ("llama31_8b", 16, 8192, {"data": 1, "fsdp": -1}, 512, "v6e:4x4", 6.0259, 12.7989),
    ("mixtral_8x7b", 128, 4096, {"data": 1, "fsdp": -1}, 512, "v5p:4x4x4", 8.7603, 20.4343),
    ("llama2_70b", 256, 4096, {"data": 1, "fsdp": -1}, 512, "v5p:4x4x8", 6.4824, 25.0453),
    ("llama31_8b", 4, 2**16, RING, 512, "v5p:4x4x4", 1.5089, 6.2319),
    ("llama31_8b", 4, 2**17, RING, 512, "v5p:4x4x4", 1.5090, 7.3451),
    ("llama31_8b", 4, 2**18, RING, 512, "v5p:4x4x4", 1.5091, 10.8290),
]


@pytest.mark.parametrize(
    ("preset", "batch", "length", "mesh", "chunk", "topology", "held", "total"), COMPILED
)
def test_estimates_against_recorded_compilations(
    preset, batch, length, mesh, chunk, topology, held, total
):
    config = make_config(preset, batch, length, mesh)
    config.objective.chunk = chunk
    sizes = stage.plan(config, parse(topology))["bytes_per_chip"]
    assert sizes["arguments"] / 1e9 == pytest.approx(held, rel=0.001)
    assert sizes["temp"] / 1e9 == pytest.approx(total - held, rel=0.25)
    assert sizes["total"] / 1e9 == pytest.approx(total, rel=0.10)


def test_estimate_and_roofline_are_bounds():
    found = stage.plan(make_config(), parse("v5p:2x2x4"))["roofline"]
    assert found["step_seconds"] == max(
        found[f"{x}_seconds"] for x in ("arithmetic", "memory", "network")
    )
    assert 0.7 < found["mfu"] < 0.77  # full recomputation: a forward pass of four is extra
    kept = stage.plan(make_config(remat="none"), parse("v5p:2x2x4"))["roofline"]
    assert kept["mfu"] == pytest.approx(1.0)


def test_a_pipeline_is_planned_with_its_bubble():
    found = stage.plan(tiny(mesh={"data": 4, "stage": 2}), parse("v5e:2x4"))
    assert found["pipeline"] == {"stages": 2, "microbatches": 4, "repeats": 1, "bubble": 0.2}


@pytest.mark.parametrize("objective", ["clm", pytest.param("dpo", marks=pytest.mark.slow)])
def test_arguments_equal_those_of_the_compiled_step(objective, monkeypatch):
    # The whole --compile path, with this machine's eight CPU devices in place of described chips.
    monkeypatch.setattr(stage, "described_devices", lambda machine, slices: jax.devices())
    config = tiny()
    config.objective.name = objective
    if objective == "dpo":
        del config.objective.z_loss
    found = stage.plan(config, parse("v5e:2x4"), compile=True, objectives=DPO)
    assert found["source"] == "compiler"
    assert found["fits"] is True
    compiled, estimated = found["bytes_per_chip"], found["analytic"]
    assert compiled["arguments"] == pytest.approx(estimated["arguments"], abs=256)
    assert compiled["total"] == compiled["arguments"] + compiled["temp"]
    assert found["compiled"]["collectives"]["all-reduce"] > 0
    assert ("frozen" in found["memory"]["arguments"]) == (objective == "dpo")


def test_a_program_that_the_compiler_cannot_place_does_not_fit(monkeypatch, capsys):
    def refuse(made):
        raise compiler.OutOfMemoryError("Used 20G of 15.75G hbm.")

    monkeypatch.setattr(stage, "described_devices", lambda machine, slices: jax.devices())
    monkeypatch.setattr(compiler, "compile_step", refuse)
    found = stage.run(tiny(), topology="v5e:2x4", compile=True, json=False)
    assert (found["fits"], found["source"]) == (False, "compiler")
    assert "Used 20G" in capsys.readouterr().out


def test_frozen_parameters_have_no_optimizer_state_and_cost_two_passes():
    config = tiny()
    full = stage.plan(config, parse("v5e:2x4"))
    config.train.trainable = "attention"
    part = stage.plan(config, parse("v5e:2x4"))
    assert part["n_trained"] < full["n_trained"] == full["n_params"] == part["n_params"]
    assert part["memory"]["arguments"]["optimizer"] < full["memory"]["arguments"]["optimizer"]
    assert part["flops_per_token"] < full["flops_per_token"]


def test_each_dial_lowers_memory():
    machine = parse("v5p:2x2x4")
    base = stage.plan(make_config(remat="none"), machine)["memory"]["temp"]
    dots = stage.plan(make_config(remat="dots"), machine)["memory"]["temp"]
    full = stage.plan(make_config(), machine)["memory"]["temp"]
    sizes = [sum(parts.values()) for parts in (base, dots, full)]
    assert sizes == sorted(sizes, reverse=True)
    config = make_config(batch=128)
    whole = stage.plan(config, machine)["bytes_per_chip"]["temp"]
    config.train.microbatches = 4
    assert stage.plan(config, machine)["bytes_per_chip"]["temp"] < whole
    config.objective.chunk = 256
    assert stage.plan(config, machine)["bytes_per_chip"]["temp"] < whole


def test_a_run_that_does_not_fit_is_told_what_would_help():
    found = stage.plan(make_config(batch=256, remat="none"), parse("v6e:4x4"))
    assert found["fits"] is False
    assert "--config.model.remat=full" in found["advice"]
    copies = stage.plan(make_config(mesh={"data": -1}), parse("v5e:4x4"))
    assert "--config.mesh.fsdp=-1" in copies["advice"]
    small = stage.plan(make_config(batch=4), parse("v5e:2x2"))
    assert small["fits"] is False
    assert "v5e:2x4" in small["advice"]


def test_what_advice_says_is_true():
    machine = parse("v6e:4x4")
    config = make_config(batch=256, remat="none")
    words = stage.plan(config, machine)["advice"].removeprefix("It would fit with ").split()
    for word in words:
        path, value = word.removeprefix("--config.").split("=")
        section, key = path.split(".")
        config[section][key] = type(config[section][key])(value)
    assert stage.plan(config, machine)["fits"] is True


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"mesh": {"data": 3}}, "Nearest that would"),
        ({"mesh": {"data": 1, "fsdp": 16}, "batch": 8}, "batch_size=8 does not divide"),
        ({"mesh": {"data": 1, "tensor": 16}, "n_heads": 8, "head_dim": 512}, "does not divide"),
    ],
)
def test_meshes_that_do_not_fit(change, hint):
    with pytest.raises(ConfigError) as refused:
        stage.plan(make_config(**change), parse("v5p:2x2x4"))
    assert hint in str(refused.value)


def test_other_configs_are_refused():
    from ml_collections import ConfigDict

    with pytest.raises(ConfigError, match="plans training runs"):
        stage.run(ConfigDict({"tasks": {}}), topology="v5e:4x4")


def test_encoder_decoders_count_both_sides():
    config = make_config("t5_base", 128, 568, {"data": -1}, remat="none")
    config.data.corruption = {"name": "span_corruption", "rate": 0.15, "mean_span": 3.0}
    found = stage.plan(config, parse("v5e:2x4"))
    assert found["tokens_per_step"] == 128 * (511 + 114)  # as T5, whose 512 include an end
    projection = 768 * 768
    encoder = 12 * (4 * projection + 2 * 768 * 3072)
    decoder = 12 * (8 * projection + 2 * 768 * 3072) + 768 * 32128
    pairs = 511 * 511 + 114 * 115 // 2 + 114 * 511
    expected = 6 * (encoder * 511 + decoder * 114) + 3 * 4 * 12 * 768 * pairs
    assert found["flops_per_token"] * (511 + 114) == pytest.approx(expected, rel=1e-9)


def test_slices_and_cores_count():
    config = make_config(mesh={"data": 2, "fsdp": -1})
    config.mesh.dcn = 2
    found = stage.plan(config, parse("v5p:2x2x2"))
    assert (found["n_chips"], found["mesh"]) == (16, {"data": 2, "fsdp": 8})
    cores = stage.plan(make_config(), parse("tpu7x:2x2x2"))
    assert (cores["n_chips"], cores["n_devices"]) == (8, 16)
    assert cores["bytes_per_chip"]["arguments"] == pytest.approx(2 * 5.0569e9, rel=0.001)


def test_attention_scores_count_only_where_they_are_stored():
    config = assembly.model_config(make_config())
    assert not stage.stores_matrix(config, "tpu", 2048, 1)
    assert not stage.stores_matrix(config, "gpu", 2048, 1)
    assert stage.stores_matrix(config, "cpu", 2048, 1)
    assert not stage.stores_matrix(config, "cpu", 8192, 1)  # chunked
    assert stage.stores_matrix(config, "tpu", 100, 1)  # no multiple of the kernel's lanes
    odd = assembly.model_config(make_config(attention="xla"))
    assert stage.stores_matrix(odd, "tpu", 2048, 1)


def test_network_traffic_of_a_hand_made_case():
    config = assembly.model_config(tiny())
    mesh = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1, "expert": 1, "stage": 1}
    work = memory.Work(2, 128, 128, 1, 1, 1.0, True, 1, 0, False, 0, 0, 0)
    sent = roofline.network(config, work, mesh, 1000.0)
    # Weights are gathered twice and gradients scattered once (3/4 each); then a quarter is reduced.
    assert sent == {"fsdp": 0.75 * 3 * 4000, "data": 2 * 0.5 * 1000}


def test_command_prints_one_object_in_three_seconds_without_a_device():
    code = (
        "import sys, tests_config\n"
        "from llm.plan import stage\n"
        "stage.run(tests_config.make_config(), topology='v5p:2x2x4')"
    )
    module = ROOT / "tests" / "plan" / "test_plan.py"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code.replace("import sys, tests_config", _loader(module))],
        env={**os.environ, "JAX_PLATFORMS": "tpu", "PYTHONPATH": str(ROOT)},  # there is none
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(done.stdout)["n_params"] == 6_738_415_616
    assert after.ru_utime - before.ru_utime < 4.0  # 2 s of it is importing JAX and pytest


def _loader(module: Path) -> str:
    return (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('tests_config', {str(module)!r})\n"
        "tests_config = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(tests_config)"
    )


def test_table_for_people(capsys):
    stage.run(make_config(batch=256, remat="none"), topology="v6e:4x4", json=False)
    shown = capsys.readouterr().out
    for words in ("16 chips", "6.74 G parameters", "DOES NOT FIT", "It would fit with", "MFU"):
        assert words in shown


def test_collectives_are_read_from_a_program():
    program = (
        "  %a = (bf16[8,4]{1,0}, bf16[8,64]{1,0}) all-gather-start(%x), dimensions={1}\n"
        "  %b = bf16[8,64]{1,0} all-gather-done(%a)\n"
        "  %c = f32[2,64]{1,0} reduce-scatter(%b), calls=%all-reduce.1\n"
        "  %d = (s8[4]{0}, s8[4]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%c)\n"
        "  ROOT %e = (f32[3]{0}, f32[]{:T(128)}) all-reduce(%d, %d), to_apply=%add\n"
    )
    found = compiler.collectives(program)
    assert found.counts == dict.fromkeys(
        ("all-gather", "all-reduce", "collective-permute", "reduce-scatter"), 1
    )
    assert found.sizes == {
        "all-gather": 1024,
        "all-reduce": 12,
        "collective-permute": 4,
        "reduce-scatter": 512,
    }
    assert found.gathered == {(8, 64), (3,)}


def test_gathered_states_are_told_from_weights():
    made = assembly.assemble(make_config(batch=32), 16)
    weights = {(4096, 32000), (1, 4096, 11008), (128, 4096, 32)}
    rest = frozenset({(16, 2, 2048), (2, 2048, 4096)})  # tokens; one device's states
    assert compiler.whole_states(compiler.Collectives({}, {}, weights | rest), made) == []
    states = frozenset({(16, 2, 2048, 4096), (32, 2048, 11008)})
    found = compiler.whole_states(compiler.Collectives({}, {}, states | weights), made)
    assert found == [[16, 2, 2048, 4096], [32, 2048, 11008]]


def test_search_finds_what_fits_and_says_the_options(capsys):
    config = make_config(batch=128, length=4096)
    found = search.run(config, "v6e:4x4", json=False)
    assert capsys.readouterr().out.count("--config.model.remat=") == len(found) == 10
    assert [p["step_seconds"] for p in found] == sorted(p["step_seconds"] for p in found)
    for word in shlex.split(found[0]["options"]):
        path, value = word.removeprefix("--config.").split("=")
        section, key = path.split(".")
        config[section][key] = type(config[section][key])(value)
    again = stage.plan(config, parse("v6e:4x4"))
    assert again["fits"] is True
    assert again["bytes_per_chip"]["total"] == found[0]["total"]
    assert again["roofline"]["step_seconds"] == found[0]["step_seconds"]
    with pytest.raises(ConfigError, match="Nothing that was tried fits"):
        search.run(make_config("llama2_70b"), "v5e:2x2")


def test_what_remat_keeps_costs_memory_and_spares_work():
    names = ("query", "key", "value", "context", "output", "gate", "up", "down")
    policies = [("full", ()), ("save", ("gate", "up")), ("save", names), ("dots", ())]
    plans = []
    for remat, kept in policies:
        config = make_config(remat=remat, remat_names=kept)
        plans.append(stage.plan(config, parse("v5p:2x2x4")))
    saved = [p["memory"]["temp"]["saved_activations"] for p in plans]
    layer = 32 * 2 * 2048 * 2  # layers, tokens of a chip, two bytes
    assert saved[0] == layer * 4096
    assert saved[1] == layer * (4096 + 2 * 11008)
    assert saved[2] == layer * (7 * 4096 + 2 * 11008)
    assert saved[3] == layer * (6 * 4096 + 2 * 11008)  # not what attention puts out
    seconds = [p["roofline"]["arithmetic_seconds"] for p in plans]
    assert seconds[0] > seconds[1] > seconds[3] > seconds[2]
    assert plans[2]["roofline"]["mfu"] == pytest.approx(1.0)  # nothing large is done twice

# SPDX-License-Identifier: Apache-2.0
"""The planner: will a run fit its machine, and how fast could it be? Touches no device.

python scripts/plan.py --config=configs/pretrain/llama2_7b.py --topology=v5p:2x2x4 [--compile]
"""

import dataclasses
import json as json_format
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm.core import profile
from llm.core import trees as named_trees
from llm.models import costs as model_flops
from llm.models import pipeline
from llm.models.attention import WHOLE_MATRIX
from llm.models.config import GATED, TransformerConfig
from llm.plan import assembly, memory, model_costs, roofline, show
from llm.plan.assembly import Assembly
from llm.plan.topology import (
    SLICES,
    Topology,
    described_devices,
    link_bandwidth,
    nearest_slice,
    parse,
)
from llm.plan.topology import memory as chip_memory


def run(
    config: Any,
    workdir: str | None = None,
    *,
    topology: str,
    compile: bool = False,
    json: bool = True,
    objectives: Mapping[str, str] = assembly.OBJECTIVES,
) -> dict[str, Any]:
    """Plan a training run and print the plan.

    Args:
        config: a training config.
        workdir: not used; nothing is written.
        topology: "v5p:2x2x4", "v6e:4x4", "h100:8", "cpu:8"; with config.mesh.dcn slices of it.
        compile: ask the real TPU compiler (needs libtpu, takes minutes) instead of estimating.
        json: print one JSON object; else a table for people.
        objectives: objective name -> "module:function" that builds it.

    Returns:
        n_params, n_chips, tokens_per_step, flops_per_token, bytes_per_chip {arguments, temp,
        total, hbm}, fits, source ("analytic" or "compiler"), and the reasons behind them.

    Raises:
        ConfigError: the topology is unknown, or the mesh, batch or model do not fit it.
    """
    del workdir
    machine = parse(topology)
    found = plan(config, machine, compile=compile, objectives=objectives)
    print(json_format.dumps(found) if json else show.table(found))
    return found


def plan(
    config: Any,
    machine: Topology,
    *,
    compile: bool = False,
    objectives: Mapping[str, str] = assembly.OBJECTIVES,
) -> dict[str, Any]:
    """Return the plan of a training run on a machine; see `run`."""
    slices = int(config.mesh.get("dcn", 1)) if "mesh" in config else 1
    made = assembly.assemble(config, machine.n_devices * slices, objectives)
    work = work_of(made, machine)
    held = arguments(made)
    needed = memory.estimate(made.config, work)
    found = {
        **_sizes(made, machine, slices),
        **costs(made, machine, work, sum(held.values())),
        "bytes_per_chip": _totals(machine, sum(held.values()), sum(needed.values())),
        "memory": {"arguments": _rounded(held, machine), "temp": _rounded(needed, machine)},
        "source": "analytic",
    }
    stages = pipeline.schedule(made.layout, made.config.n_layers, made.settings.microbatch)
    if stages is not None:
        found["pipeline"] = {**stages._asdict(), "bubble": round(stages.bubble, 4)}
    if compile:
        found.update(_compiled(config, machine, slices, objectives, found))
    found["fits"] = _fits(found)
    if found["fits"] is False:
        found["advice"] = advice(made, machine, work, sum(held.values()))
    return found


def work_of(made: Assembly, machine: Topology, c: TransformerConfig | None = None) -> memory.Work:
    """Work out what one device computes at a time."""
    c = c or made.config
    mesh = assembly.parts_of(made)
    sequences = made.settings.batch_size * (2 if made.pairs else 1)
    split = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    length = max(made.length, made.encoder_length)  # both sides as long as the longer
    trained, _ = made.bones.split(made.bones.shapes)
    placed, _ = made.bones.split(made.bones.shardings)
    return memory.Work(
        rows=sequences / split / made.settings.microbatches,
        length=length / mesh["context"],
        whole_length=length,
        tensor=mesh["tensor"],
        residual=mesh["tensor"] if made.layout.choices.sequence else 1,
        room=_room(c, mesh["expert"]),
        gathered=mesh["fsdp"] * mesh["context"] > 1,
        microbatches=made.settings.microbatches,
        chunk=made.chunk,
        stored_matrix=stores_matrix(c, machine.platform, length, mesh["context"]),
        local_params=memory.tree_count(made.bones.shapes, made.bones.shardings),
        local_trained=memory.tree_count(trained, placed),
        layer_params=_layer_params(made, mesh["expert"]),
    )


def _room(c: TransformerConfig, experts: int) -> float:
    """Return the rows a device makes room for, over its share: nothing is dropped, so the worst."""
    if experts == 1 or c.moe_dispatch != "dropless":
        return 1.0
    own = c.n_experts // experts
    return experts * min(c.experts_per_token, own) / c.experts_per_token


def _layer_params(made: Assembly, experts: int) -> float:
    """Count one layer's parameters, of the experts only those of one expert-parallel device."""
    total = 0.0
    for name, leaf in named_trees.flatten(made.bones.shapes).items():
        axes = made.bones.axes[name]
        if axes and axes[0] == "layers":
            total += math.prod(leaf.shape[1:]) / (experts if "expert" in axes else 1)
    return total


def stores_matrix(c: TransformerConfig, platform: str, length: int, context: int) -> bool:
    """Tell whether attention writes its scores to memory, by backend and platform."""
    plain = c.position not in ("alibi", "t5") and not c.attention_sinks
    fused = {
        "tpu": plain and length % 128 == 0 and context == 1,
        "gpu": c.dtype != "float32" and not c.attention_softcap and not c.attention_sinks,
    }
    if c.attention == "auto":
        return not fused.get(platform, False) and length * length <= WHOLE_MATRIX
    if c.attention == "dot_product":
        return not (platform == "gpu" and fused["gpu"])
    return c.attention == "xla"


def arguments(made: Assembly) -> dict[str, float]:
    """Return the bytes that one device holds between steps, by part."""
    where, shapes = made.where, made.where.state_shapes
    trained, rest = made.bones.split(made.bones.shapes)
    import jax

    reference = jax.eval_shape(made.objective.init, trained)
    places = {name: array.sharding for name, array in made.batch.items()}
    parts = {
        "parameters": memory.tree_bytes(shapes.params, where.state.params),
        "optimizer": memory.tree_bytes(shapes.opt_state, where.state.opt_state),
        "average": memory.tree_bytes(shapes.ema, where.state.ema),
        "frozen": memory.tree_bytes(rest, where.frozen.params)
        + memory.tree_bytes(reference, where.frozen.objective),
        "batch": memory.tree_bytes(made.batch, places),
    }
    return {name: float(size) for name, size in parts.items() if size}


def _sizes(made: Assembly, machine: Topology, slices: int) -> dict[str, Any]:
    total, trained = assembly.counts(made)
    sequences = made.settings.batch_size * (2 if made.pairs else 1)
    mesh = {axis: size for axis, size in assembly.parts_of(made).items() if size > 1}
    return {
        "topology": machine.text,
        "n_chips": machine.n_chips * slices,
        "n_devices": machine.n_devices * slices,
        "mesh": mesh,
        "n_params": total,
        "n_trained": trained,
        "params_by_part": model_costs.by_part(made.config),
        "batch_size": made.settings.batch_size,
        "microbatches": made.settings.microbatches,
        "length": made.length,
        "tokens_per_step": sequences * (made.length + made.encoder_length),
        "steps": made.settings.steps,
    }


class _Row(NamedTuple):
    """FLOPs of one row, both sides of an encoder-decoder included."""

    training: float
    forward: float
    convention: float
    n_active: float


def _row(made: Assembly) -> _Row:
    """Count a row that real tokens fill."""
    c = made.config
    total, trained = assembly.counts(made)
    sides = [
        (float(model_flops.matmul_parameters(c)), model_flops.attention_layers(c), made.length)
    ]
    cross = 0.0
    if made.encoder_length:
        encoder = dataclasses.replace(c, architecture="encoder", n_layers=c.n_encoder_layers)
        active = float(model_flops.matmul_parameters(encoder) - c.d_model * c.vocab_size)
        sides.append((active, model_flops.attention_layers(encoder), made.encoder_length))
        pairs = profile.cross_attention_pairs([made.length], [made.encoder_length])
        cross = 4.0 * c.n_layers * c.n_heads * c.head_dim * pairs
    training = forward = convention = 0.0
    for active, layers, length in sides:
        kept = active * trained / total
        training += profile.training_flops(kept, layers, [length], n_frozen=active - kept)
        forward += 2 * active * length + profile.attention_flops(layers, [length])
        convention += profile.convention_flops(active, layers, length, length)
    n_active = sum(active for active, _, _ in sides)
    return _Row(training + 3 * cross, forward + cross, convention + 3 * cross, n_active)


def _repeated(made: Assembly, row: _Row) -> float:
    """Return the FLOPs of a row's forward pass that the backward pass does again."""
    c = made.config
    if c.remat == "none":
        return 0.0
    names = memory.kept(c)
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    outputs = {"query": queries, "key": keys, "value": keys, "output": queries}
    outputs |= dict.fromkeys(("gate", "up", "down") if c.activation in GATED else ("up", "down"), 0)
    if not c.n_experts:
        outputs |= {name: c.d_ff for name in outputs if name in ("gate", "up", "down")}
    spared = float(sum(size for name, size in outputs.items() if name in names))
    spared *= 2.0 * c.d_model * c.n_layers * made.length
    if "context" in names:
        spared += profile.attention_flops(model_flops.attention_layers(c), [made.length])
    head = 2 * c.d_model * c.vocab_size * made.length
    return max(row.forward - head - spared, 0.0)


def costs(
    made: Assembly, machine: Topology, work: memory.Work, state_bytes: float
) -> dict[str, Any]:
    """Return FLOPs per token by both countings, and the roofline."""
    c = made.config
    row = _row(made)
    rows = made.settings.batch_size * (2 if made.pairs else 1)
    tokens = rows * (made.length + made.encoder_length)
    model = rows * (
        row.training + (row.forward if made.compared else 0.0)
    )  # + the frozen reference
    repeated = rows * _repeated(made, row)
    mesh = assembly.parts_of(made)
    return {
        "n_active": round(row.n_active),
        "flops_per_token": model / tokens,
        "flops_per_token_convention": rows * row.convention / tokens,
        "roofline": roofline.step_time(
            roofline.Flops(model=model, executed=model + repeated),
            roofline.traffic(c, work, state_bytes),
            roofline.network(c, work, mesh, assembly.counts(made)[0]),
            machine.device,
            link_bandwidth(machine),
            math.prod(mesh.values()),
            tokens,
        ),
    }


def _totals(machine: Topology, held: float, needed: float) -> dict[str, int | None]:
    chip = machine.devices_per_chip
    limit = chip_memory(machine)
    return {
        "arguments": round(held * chip),
        "temp": round(needed * chip),
        "total": round((held + needed) * chip),
        "hbm": None if limit is None else round(limit),
    }


def _rounded(parts: Mapping[str, float], machine: Topology) -> dict[str, int]:
    return {name: round(size * machine.devices_per_chip) for name, size in parts.items()}


def _fits(found: Mapping[str, Any]) -> bool | None:
    sizes = found["bytes_per_chip"]
    if "error" in found.get("compiled", {}):
        return False
    return None if sizes["hbm"] is None else sizes["total"] <= sizes["hbm"]


def _compiled(
    config: Any,
    machine: Topology,
    slices: int,
    objectives: Mapping[str, str],
    estimated: Mapping[str, Any],
) -> dict[str, Any]:
    """Replace the estimate by what the TPU compiler says; keep the estimate beside it.

    A program that the compiler cannot place has no sizes: the estimate stays.
    """
    from llm.plan import compiler

    devices = described_devices(machine, slices)
    made = assembly.assemble(config, devices, objectives)
    try:
        answer = compiler.compile_step(made)
    except compiler.OutOfMemoryError as error:
        return {"source": "compiler", "compiled": {"error": str(error)}}
    return {
        "bytes_per_chip": _totals(machine, answer.arguments, answer.temp),
        "source": "compiler",
        "analytic": estimated["bytes_per_chip"],
        "compiled": {
            "flops_per_chip": answer.flops,
            "bytes_accessed_per_chip": answer.bytes_accessed,
            "collectives": answer.collectives.counts,
            "collective_bytes_per_chip": answer.collectives.sizes,
            "whole_states_gathered": compiler.whole_states(answer.collectives, made),
            "kernels": answer.kernels,
        },
    }


def advice(made: Assembly, machine: Topology, work: memory.Work, held: float) -> str:
    """Say what would make a run fit: cheapest first, each added to those before.

    Only what changes temporaries is tried here; state that is too large by itself needs more
    chips or, where it is not split yet, mesh.fsdp.
    """
    limit = chip_memory(machine)
    assert limit is not None
    room = limit / machine.devices_per_chip
    mesh = assembly.parts_of(made)
    changes: list[str] = []
    c = made.config

    def fits(c: TransformerConfig, work: memory.Work) -> bool:
        return held + sum(memory.estimate(c, work).values()) <= room

    if c.remat != "full":
        c = dataclasses.replace(c, remat="full")
        changes.append("--config.model.remat=full")
    if not fits(c, work) and not work.chunk and work.length % 512 == 0:
        work = work._replace(chunk=512)
        changes.append("--config.objective.chunk=512")
    while not fits(c, work) and work.rows > 1:
        work = work._replace(rows=work.rows / 2, microbatches=work.microbatches * 2)
        changes = [x for x in changes if "microbatches" not in x]
        changes.append(f"--config.train.microbatches={work.microbatches}")
    if changes and fits(c, work):
        return "It would fit with " + " ".join(changes)
    if mesh["data"] > 1:
        return "Split the state over all chips: --config.mesh.data=1 --config.mesh.fsdp=-1"
    if machine.kind in SLICES:
        wanted = machine.n_chips * 2
        return f"Take more chips: --topology={machine.kind}:{nearest_slice(machine.kind, wanted)}"
    return "Take more devices, a shorter data.length or a smaller train.batch_size"

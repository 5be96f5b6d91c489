# SPDX-License-Identifier: Apache-2.0
"""The memory dial: which mesh, rematerialisation and microbatches fit a machine, best first.

python scripts/plan.py --config=configs/pretrain/llama2_7b.py --topology=v5p:2x2x4 --search
"""

import dataclasses
import json as json_format
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from llm.errors import ConfigError
from llm.plan import assembly, memory, show, stage
from llm.plan.assembly import Assembly
from llm.plan.topology import Topology, parse
from llm.plan.topology import memory as chip_memory

TENSOR = (1, 2, 4, 8, 16)
# config.remat -> what it keeps by name
REMATS: dict[str, tuple[str, ...]] = {
    "none": (),
    "dots": (),
    "save": ("query", "key", "value", "context"),
    "full": (),
}


def run(
    config: Any,
    topology: str,
    *,
    json: bool = True,
    objectives: Mapping[str, str] = assembly.OBJECTIVES,
    count: int = 10,
) -> list[dict[str, Any]]:
    """Print and return the best plans that fit, fastest first by the roofline.

    The global batch stays what the config says: microbatches set how much of it is at work at once.

    Raises:
        ConfigError: the topology or config is wrong, or nothing fits.
    """
    machine = parse(topology)
    found = search(config, machine, objectives)
    if not found:
        raise ConfigError(
            f"Nothing that was tried fits {topology}.",
            "Take more chips, or a smaller config.train.batch_size or config.data.length.",
        )
    found = found[:count]
    print(json_format.dumps(found) if json else table(found))
    return found


def search(
    config: Any, machine: Topology, objectives: Mapping[str, str] = assembly.OBJECTIVES
) -> list[dict[str, Any]]:
    """Return all plans that fit, fastest first; of equal ones, first what needs less memory."""
    found: list[dict[str, Any]] = []
    for mesh in _meshes(config):
        trial = config.copy_and_resolve_references()
        trial.mesh.update(mesh)
        slices = int(trial.mesh.get("dcn", 1))
        try:
            made = assembly.assemble(trial, machine.n_devices * slices, objectives)
        except ConfigError:
            continue  # heads, batch or devices do not divide
        held = sum(stage.arguments(made).values())
        found += _choices(made, machine, held, mesh)
    return sorted(found, key=lambda plan: (plan["step_seconds"] or 0.0, plan["total"]))


def _meshes(config: Any) -> Iterator[dict[str, int]]:
    experts = int(config.model.get("n_experts", 0) or 0)
    for expert in (n for n in TENSOR if n == 1 or (experts and experts % n == 0)):
        for tensor in TENSOR:
            yield {"data": 1, "fsdp": -1, "tensor": tensor, "expert": expert}


def _choices(
    made: Assembly, machine: Topology, held: float, mesh: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """Yield what fits of one mesh: for each rematerialisation the fewest microbatches."""
    limit = chip_memory(machine)
    rows = made.settings.batch_size // assembly.batch_parts(made)
    for remat, names in REMATS.items():
        shape = dataclasses.replace(made.config, remat=remat, remat_names=names)
        for parts in (n for n in range(1, rows + 1) if rows % n == 0):
            settings = made.settings._replace(microbatches=parts)
            trial = made._replace(config=shape, settings=settings)
            work = stage.work_of(trial, machine)
            total = (held + sum(memory.estimate(shape, work).values())) * machine.devices_per_chip
            if limit is None or total <= limit:
                yield _plan(trial, machine, held, total, mesh)
                break


def _plan(
    made: Assembly, machine: Topology, held: float, total: float, mesh: Mapping[str, int]
) -> dict[str, Any]:
    bound = stage.costs(made, machine, stage.work_of(made, machine), held)["roofline"]
    options: dict[str, Any] = {
        f"mesh.{axis}": size for axis, size in mesh.items() if axis == "fsdp" or size > 1
    }
    options |= {"mesh.data": 1, "model.remat": made.config.remat}
    if made.config.remat_names:
        options["model.remat_names"] = made.config.remat_names
    options["train.microbatches"] = made.settings.microbatches
    return {
        "options": shlex.join(f"--config.{key}={value}" for key, value in options.items()),
        "total": round(total),
        "step_seconds": bound["step_seconds"] if bound else None,
        "mfu": bound["mfu"] if bound else None,
        "bound": bound["bound"] if bound else "",
    }


def table(found: list[dict[str, Any]]) -> str:
    """Write plans as lines for people."""
    lines = []
    for plan in found:
        seconds = plan["step_seconds"]
        speed = f"{show.seconds(seconds)}, MFU {plan['mfu']:.0%}" if seconds else "speed unknown"
        lines.append(f"{show.gigabytes(plan['total']):>9}  at best {speed:<18} {plan['options']}")
    return "\n".join(lines)

# SPDX-License-Identifier: Apache-2.0
"""What the TPU compiler says of training programs, ours and MaxText's, per chip.

    PYTHONPATH=. python benchmarks/tpu_programs.py llama2_7b [--layers] [--peer-python=PYTHON]
    PYTHONPATH=. python benchmarks/tpu_programs.py mixtral_8x7b --mesh tensor=2

Prints bytes of arguments and temporaries of the whole program; PYTHON has `maxtext[tpu]==0.2.5`.
--layers prints instead what two layers cost: the difference of unrolled programs of four and two
layers, in FLOPs, bytes accessed and collectives, as the compiler's analysis counts a loop's body
once. Each side uses the compiler of its Python: run the script itself with PYTHON for the same on
both.
A whole program takes one to four minutes on two cores.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from configs import common
from llm.plan import assembly, compiler
from llm.plan.topology import described_devices, parse

# name -> (topology, MaxText's name for it and for the model, rows per chip, length)
PROGRAMS = {
    "llama32_1b": ("v5e:4x4", "v5e-16", "llama3.2-1b", 2, 2048),
    "llama2_7b": ("v5p:2x2x4", "v5p-32", "llama2-7b", 2, 2048),
    "llama31_8b": ("v6e:4x4", "v6e-16", "llama3.1-8b", 1, 8192),
    "mixtral_8x7b": ("v5p:4x4x4", "v5p-128", "mixtral-8x7b", 2, 4096),
    "llama2_70b": ("v5p:4x4x8", "v5p-256", "llama2-70b", 2, 4096),
}
CHUNK = 512  # positions whose logits exist at once


def ours(name: str, mesh: dict[str, int], layers: int = 0) -> dict:
    """Compile our step; unrolled with so many layers if asked."""
    topology, _, _, rows, length = PROGRAMS[name]
    machine = parse(topology)
    fields = {"n_layers": layers, "scan_layers": False} if layers else {}
    model = common.model(name, dtype="bfloat16", remat="full", **fields)
    batch = rows * machine.n_chips
    config = common.training(model, steps=1000, batch_size=batch, length=length)
    config.objective.chunk = CHUNK
    for axis, size in {"data": 1, "fsdp": -1, **mesh}.items():
        config.mesh[axis] = size
    config.sharding.sequence = mesh.get("tensor", 1) > 1
    made = assembly.assemble(config, described_devices(machine))
    found = compiler.compile_step(made)
    figures = {
        "arguments": found.arguments,
        "allocated": found.allocated,
        "total": found.total,
        "flops": found.flops,
        "bytes_accessed": found.bytes_accessed,
    }
    return {**figures, "collectives": sent(found.collectives)}


def theirs(python: str, name: str, layers: int = 0) -> dict:
    """Let MaxText compile its step in a process of its own."""
    _, topology, model, rows, length = PROGRAMS[name]
    options = [
        *(f"compile_topology={topology}", "compile_topology_num_slices=1", f"model_name={model}"),
        *(f"per_device_batch_size={rows}", f"max_target_length={length}"),
        *("remat_policy=full", "enable_checkpointing=false"),
    ]
    if layers:
        options += [f"base_num_decoder_layers={layers}", "override_model_config=true"]
        options += ["scan_layers=false"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "program.hlo"
        peer = Path(__file__).parent / "peers" / "maxtext_compile.py"
        command = [python, str(peer), str(out), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        return {**figures, "collectives": sent(compiler.collectives(out.read_text()))}


def sent(found: compiler.Collectives) -> dict[str, list[int]]:
    """Return operation -> [how often it stands in a program, bytes of its results]."""
    return {kind: [count, found.sizes[kind]] for kind, count in found.counts.items()}


def two_layers(four: dict, two: dict) -> dict:
    """Return the difference of two programs."""
    found = {key: four[key] - two[key] for key in ("flops", "bytes_accessed")}
    more, less = four["collectives"], two["collectives"]
    kinds = sorted({*more, *less})
    differences = {
        kind: [m - n for m, n in zip(more.get(kind, [0, 0]), less.get(kind, [0, 0]), strict=True)]
        for kind in kinds
    }
    return {**found, "collectives": differences, "sent": sum(n for _, n in differences.values())}


def show(who: str, figures: dict) -> None:
    """Print one side's figures as a JSON line."""
    if "arguments" in figures:
        figures = {**figures, "temp": figures["total"] - figures["arguments"]}
    print(json.dumps({"program": who, **figures}), flush=True)


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=PROGRAMS)
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--mesh", nargs="*", default=[], help="ours, as tensor=2; fsdp is the rest")
    parser.add_argument("--peer-python", default="")
    args = parser.parse_args()
    mesh = {axis: int(size) for axis, _, size in (x.partition("=") for x in args.mesh)}
    sides = {"jax-llm": lambda layers=0: ours(args.name, mesh, layers)}
    if args.peer_python:
        sides["maxtext"] = lambda layers=0: theirs(args.peer_python, args.name, layers)
    for who, compiled in sides.items():
        if args.layers:
            show(f"{who}, two layers", two_layers(compiled(4), compiled(2)))
        else:
            show(who, compiled())


if __name__ == "__main__":
    main()

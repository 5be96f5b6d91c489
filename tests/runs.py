# SPDX-License-Identifier: Apache-2.0
"""Real training runs, small enough to be killed often: start, watch, compare."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from llm.core import checkpoint
from llm.core.metrics import read_lines

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
WORDS = ("alpha", "beta", "gamma", "delta", "list", "returns", "the", "value")
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def write_documents(target, count=400, words=WORDS):
    """Write a small corpus."""
    generator = random.Random(0)
    texts = [" ".join(generator.choice(words) for _ in range(50)) for _ in range(count)]
    lines = [json.dumps({"id": str(i), "text": text}) for i, text in enumerate(texts)]
    Path(target).write_text("\n".join(lines))
    return Path(target)


def command(workdir, data, *more, config="configs/pretrain/tiny.py", steps=STEPS):
    return [
        f"--config={config}",
        f"--config.data.path={data}",
        "--config.data.length=32",
        "--config.model.d_model=32",
        "--config.model.d_ff=64",
        "--config.model.dropout=0.1",
        f"--config.train.steps={steps}",
        "--config.train.batch_size=8",
        "--config.train.log_every=5",
        "--config.train.eval_every=0",
        "--config.checkpoint.every=5",
        f"--workdir={workdir}",
        *more,
    ]


def environment(devices=1, **more):
    flags = f"--xla_force_host_platform_device_count={devices} {FLAGS}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **more}


def address(processes):
    """Return the variables by which processes find each other; none for a single one."""
    if processes == 1:
        return {}
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        place = f"localhost:{probe.getsockname()[1]}"
    return {"COORDINATOR_ADDRESS": place, "PROCESS_COUNT": str(processes)}


def start(
    workdir,
    data,
    *more,
    devices=1,
    processes=1,
    program=("scripts/pretrain.py",),
    config="configs/pretrain/tiny.py",
    steps=STEPS,
    **variables,
):
    """Start the training script, as one process or several that find each other.

    Args:
        more: further arguments.
        devices: of each process.
        processes: how many; more than one adds --distributed.
        program: what Python runs before the arguments.
        config: the config file.
        steps: of the run.
        variables: of the environment.
    """
    variables = {**address(processes), **variables}
    if processes > 1:
        more = (*more, "--distributed")
    return [
        subprocess.Popen(
            [
                sys.executable,
                *program,
                *command(workdir, data, *more, config=config, steps=steps),
            ],
            cwd=ROOT,
            env=environment(devices, **variables, PROCESS_ID=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def finish(process, timeout=300):
    """Return the exit code and what was printed, without Gloo's lines."""
    output, _ = process.communicate(timeout=timeout)
    lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
    return process.returncode, "\n".join(lines)


def last_step(workdir):
    lines = read_lines(Path(workdir) / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


def wait_for_step(workdir, step, process, timeout=300):
    """Wait until a metric line of at least `step` is written, or the process has ended."""
    end = time.monotonic() + timeout
    while process.poll() is None and last_step(workdir) < step:
        assert time.monotonic() < end, f"step {step} was not reached in {timeout} s"
        time.sleep(0.02)


def result(workdir):
    """Return the newest verified step, its tree, and the logged losses by step."""
    restored = checkpoint.restore(str(Path(workdir) / "checkpoints"))
    losses = {
        line["step"]: line["train/loss"]
        for line in read_lines(Path(workdir) / "metrics.jsonl")
        if "train/loss" in line
    }
    return restored.step, restored.tree, losses


def same_bits(one, other):
    leaves = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(leaves[0]) == len(leaves[1])
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

# SPDX-License-Identifier: Apache-2.0
"""Measure a training step beside Hugging Face's Llama under torch.compile.

    python benchmarks/train.py --peer-python=PYTHON_WITH_TORCH [--rounds=3] [--steps=20]

4 layers, 256 wide, 4 heads, 688 hidden, 8,192 tokens, rows of 256, batch 8, float32, AdamW with
decay and clipping on both sides. Ours is the step that `llm.train.run` jits, with its metrics and
its guard against non-finite numbers. The sides run in turn, each in fresh processes; compilation
is shown apart. Both read the loss after every step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "benchmarks/peers/llama_step.py"
SIZES = {
    "layers": 4,
    "width": 256,
    "heads": 4,
    "hidden": 688,
    "vocabulary": 8192,
    "length": 256,
    "batch": 8,
}


def build(sizes: dict[str, int], overrides: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model and the objective, as a config would make them."""
    from llm.models.config import TransformerConfig
    from llm.models.transformer import Transformer
    from llm.train.objective import cross_entropy

    config = TransformerConfig(
        vocab_size=sizes["vocabulary"],
        n_layers=sizes["layers"],
        d_model=sizes["width"],
        n_heads=sizes["heads"],
        n_kv_heads=sizes["heads"],
        head_dim=sizes["width"] // sizes["heads"],
        d_ff=sizes["hidden"],
        max_length=sizes["length"],
        tied_embeddings=False,
        **overrides,
    )
    model = Transformer(config)
    return model, cross_entropy(model)


def ours(sizes: dict[str, int], steps: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Time our step on rows like those of training; the first three steps compile."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from llm.core import heap, sharding
    from llm.train import initial
    from llm.train.settings import make_optimizer
    from llm.train.step import Frozen, init_state, make_step

    heap.keep_freed()  # as `llm.train.run.train` does
    model, objective = build(sizes, overrides)
    with sharding.use_layout(sharding.make_mesh({"data": -1})) as layout:
        bones = initial.skeleton(model, layout)
        schedule = {"name": "constant", "peak": 3e-4}
        adamw = {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0}
        optimizer = make_optimizer(steps, bones.axes, schedule, **adamw)
        state = init_state(initial.fresh_parameters(model, bones, layout, 0), optimizer, False)
        step = jax.jit(make_step(objective, optimizer), donate_argnums=0)
        B, T = sizes["batch"], sizes["length"]
        rng = np.random.default_rng(0)
        batches = []
        for _ in range(4):
            tokens = rng.integers(sizes["vocabulary"], size=(B, T + 1), dtype=np.int32)
            batches.append(
                {
                    "tokens": jnp.asarray(tokens[:, :-1]),
                    "targets": jnp.asarray(tokens[:, 1:]),
                    "weights": jnp.ones((B, T), jnp.float32),
                    "segments": jnp.ones((B, T), jnp.int32),
                    "positions": jnp.tile(jnp.arange(T, dtype=jnp.int32)[None], (B, 1)),
                }
            )
        seconds, losses = [], []
        for i in range(3 + steps):
            started = time.perf_counter()
            state, metrics = step(
                state, Frozen({}, ()), batches[i % len(batches)], jax.random.key(0)
            )
            losses.append(float(metrics["loss"]))
            seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[3:], "compile": sum(seconds[:3]), "losses": losses}


def run(command: list[str]) -> dict[str, Any]:
    """Run one side in a fresh process."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def describe(name: str, runs: list[dict[str, Any]], tokens: int) -> float:
    """Print the median step with its spread; return it."""
    all_steps = [s for one in runs for s in one["seconds"]]
    middle = statistics.median(all_steps)
    compiling = statistics.median(one["compile"] for one in runs)
    print(
        f"{name:28} {1e3 * middle:7.1f} ms a step ({1e3 * min(all_steps):.1f} to "
        f"{1e3 * max(all_steps):.1f}), {tokens / middle:,.0f} tokens/s; "
        f"first steps {compiling:.1f} s",
        flush=True,
    )
    return middle


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default="", help="an interpreter with torch, transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="{}", help="JSON of model fields to change in ours")
    parser.add_argument("--ours", action="store_true", help="measure our side here, print JSON")
    options = parser.parse_args(argv)
    if options.ours:
        print(json.dumps(ours(SIZES, options.steps, json.loads(options.model))))
        return
    tokens = SIZES["batch"] * SIZES["length"]
    own = [sys.executable, __file__, "--ours", f"--steps={options.steps}", "--model", options.model]
    theirs = [options.peer_python, str(PEER), json.dumps(SIZES), str(options.steps)]
    sides: dict[str, list[dict[str, Any]]] = {"jax-llm": [], "Llama under torch.compile": []}
    for _ in range(options.rounds):
        sides["jax-llm"].append(run(own))
        if options.peer_python:
            sides["Llama under torch.compile"].append(run([*theirs, str(options.threads)]))
    steps = [describe(name, runs, tokens) for name, runs in sides.items() if runs]
    if len(steps) == 2:
        print(f"jax-llm / peer, speed: {steps[1] / steps[0]:.2f}")


if __name__ == "__main__":
    main()

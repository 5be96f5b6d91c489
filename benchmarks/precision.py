# SPDX-License-Identifier: Apache-2.0
"""Loss curves of training in bf16, int8 and fp8: the same run but for one config word.

    python benchmarks/precision.py [--steps=200] [--seeds=2]

Trains configs/pretrain/tiny.py on the embedded corpus once per word and seed; prints one JSON line
each: training losses every 20 steps and the validation loss at the end. A CPU imitates the narrow
types, so times say nothing here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("dtype", "int8", "fp8")  # "dtype" multiplies in bf16


def train(word: str, seed: int, steps: int, folder: str) -> dict:
    """Run the real script; return its losses."""
    workdir = Path(folder) / f"{word}-{seed}"
    options = {
        "seed": seed,
        "model.dtype": "bfloat16",
        "model.matmul": word,
        "train.steps": steps,
        "train.eval_every": steps,
        "checkpoint.every": steps,
    }
    command = [sys.executable, "scripts/pretrain.py", "--config=configs/pretrain/tiny.py"]
    command += [f"--config.{key}={value}" for key, value in options.items()]
    subprocess.run(
        [*command, f"--workdir={workdir}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    curve = {x["step"]: round(x["train/loss"], 4) for x in lines if "train/loss" in x}
    ends = [x["eval/validation/loss"] for x in lines if "eval/validation/loss" in x]
    return {"matmul": word, "seed": seed, "curve": curve, "validation": round(ends[-1], 4)}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for word in WORDS:
                print(json.dumps(train(word, seed, args.steps, folder)), flush=True)


if __name__ == "__main__":
    main()

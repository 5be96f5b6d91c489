# SPDX-License-Identifier: Apache-2.0
"""Race to a validation loss on character-level Shakespeare against nanoGPT's CPU recipe.

    python benchmarks/time_to_loss.py --text=input.txt --peer-python=PYTHON_WITH_TORCH --seeds=5

Both sides run in fresh processes, in turn. Their clocks start with the process: imports, data and
compilation count, evaluation does not (ours counts its final save as well). No compilation cache is
kept. The loss is that of all non-overlapping 64-character blocks of the last tenth of the text,
which neither side trains on. Ours is `configs/pretrain/shakespeare_char.py` through the ordinary
entry script; `--longer=STEPS` also runs it for as many steps as fill the peer's time.

Prints every run and the medians; `--plot=FILE` draws loss over time.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm.core.metrics import read_lines

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/pretrain/shakespeare_char.py"


class Run(NamedTuple):
    """Seconds without evaluation, validation loss, and the loss curve of one training run."""

    seconds: float
    loss: float
    curve: list[tuple[float, float]]


def environment(started: float) -> dict[str, str]:
    """Return this environment without a compilation cache, with the moment of the start.

    JAX is told that there is only a CPU, so that an installed libtpu is not searched for a TPU.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return {**kept, "STARTED": str(started), "JAX_PLATFORMS": "cpu"}


def peer(python: str, text: str, seed: int) -> Run:
    """Train the PyTorch recipe."""
    command = [python, str(ROOT / "benchmarks/peers/char_gpt.py"), text, str(seed)]
    made = subprocess.run(
        command, env=environment(time.time()), capture_output=True, text=True, check=True
    )
    found = json.loads(made.stdout.splitlines()[-1])
    return Run(found["seconds"], found["curve"][-1][1], [tuple(point) for point in found["curve"]])


def ours(text: str, seed: int, options: Sequence[str] = ()) -> Run:
    """Train our config through its entry script."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            str(ROOT / "scripts/pretrain.py"),
            f"--config={CONFIG}",
            f"--workdir={folder}",
            f"--config.seed={seed}",
            f"--config.data.path={text}",
            *options,
        ]
        started = time.time()
        subprocess.run(command, env=environment(started), capture_output=True, check=True)
        return _read(Path(folder), started)


def _read(workdir: Path, started: float) -> Run:
    """Read a finished run: its end event tells the time, its accounts what evaluation took."""
    ends = [line for line in read_lines(workdir / "logs/0.jsonl") if line["event"] == "end"]
    moment = datetime.datetime.fromisoformat(ends[-1]["time"]).timestamp()
    accounts = ends[-1]["seconds"]
    before = moment - started - sum(accounts.values())  # until the run's own clock began
    curve, evaluated = [], 0.0
    for line in read_lines(workdir / "metrics.jsonl"):
        evaluated = line.get("time/evaluation", evaluated)
        if "eval/validation/nll" in line:
            curve.append((before + line["time"] - evaluated, line["eval/validation/nll"]))
    return Run(moment - started - accounts["evaluation"], curve[-1][1], curve)


def plot(path: str, sides: dict[str, list[Run]], target: float) -> None:
    """Draw validation loss over seconds, one line per run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, runs), colour in zip(sides.items(), ("#d9622b", "#2f5fd0", "#0e8f83"), strict=False):
        for index, run in enumerate(runs):
            label = name if index == 0 else None
            axes.plot(*zip(*run.curve, strict=True), ".-", color=colour, alpha=0.7, label=label)
    axes.axhline(target, color="#777777", linewidth=0.8, linestyle="--")
    axes.set(xlabel="seconds, evaluation left out", ylabel="validation loss, nats per character")
    axes.set_ylim(1.5, 2.6)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def describe(name: str, runs: Sequence[Run]) -> str:
    """Return medians with the spread."""
    seconds, losses = [r.seconds for r in runs], [r.loss for r in runs]
    return (
        f"{name:<24} {statistics.median(seconds):7.1f} s ({min(seconds):.1f}–{max(seconds):.1f})"
        f"   loss {statistics.median(losses):.4f} ({min(losses):.4f}–{max(losses):.4f})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the race; exit 1 unless every run of ours reaches the target in the time allowed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="the tiny Shakespeare file")
    parser.add_argument("--peer-python", required=True, help="an interpreter with PyTorch")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--target", type=float, default=1.88)
    parser.add_argument("--longer", type=int, default=0, help="also run ours for so many steps")
    parser.add_argument("--plot", default="")
    options = parser.parse_args(argv)
    sides: dict[str, list[Run]] = {"nanoGPT's CPU recipe": [], "jax-llm": []}
    for seed in range(options.first, options.first + options.seeds):
        sides["nanoGPT's CPU recipe"].append(peer(options.peer_python, options.text, seed))
        sides["jax-llm"].append(ours(options.text, seed))
        print(*(describe(name, runs[-1:]) for name, runs in sides.items()), sep="\n", flush=True)
    if options.longer:
        steps = [f"--config.train.steps={options.longer}", "--config.train.eval_every=200"]
        sides["jax-llm, longer"] = [ours(options.text, 0, steps)]
    print(f"\nmedians of {options.seeds} seeds")
    print(*(describe(name, runs) for name, runs in sides.items()), sep="\n")
    theirs, own = list(sides.values())[:2]
    ratio = statistics.median(r.seconds for r in theirs) / statistics.median(r.seconds for r in own)
    reached = all(run.loss <= options.target for run in own)
    print(f"{ratio:.1f} times faster; every seed reached {options.target}: {reached}")
    if options.plot:
        plot(options.plot, sides, options.target)
    return 0 if reached and ratio >= 5 else 1


if __name__ == "__main__":
    sys.exit(main())

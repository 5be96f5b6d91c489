# SPDX-License-Identifier: Apache-2.0
"""Measure what checkpoints cost a training run, and print a table.

    python benchmarks/checkpoint.py

Runs `configs/pretrain/tiny.py` through the real entry point in temporary folders: how long a save
holds the loop, which share of the time that is where steps take 150 ms or more and every 50th is
saved, how fast a checkpoint is verified and restored. About two minutes on two cores.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm.core import launch
from llm.core.metrics import read_lines

CONFIG = Path(__file__).resolve().parents[1] / "configs/pretrain/tiny.py"


class Run(NamedTuple):
    """What one run measured, in seconds: of every save, of its median step, in all."""

    saves: list[float]
    step: float
    accounts: dict[str, float]


def train(workdir: Path, data: Path, *options: str) -> Run:
    """Train quietly; return its own measurements."""
    arguments = [
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.path={data}",
        "--config.train.eval_every=0",
        "--config.evals.validation.batches=1",
        *options,
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        code = launch.main("pretrain", arguments, {})
    if code:
        sys.exit(code)
    lines = read_lines(workdir / "metrics.jsonl")
    saves = [line["perf/save_seconds"] for line in lines if "perf/save_seconds" in line]
    steps = [line["perf/step_seconds"] for line in lines if "perf/step_seconds" in line]
    accounts = {k[5:]: v for k, v in lines[-1].items() if k.startswith("time/")}
    return Run(saves, statistics.median(steps), accounts)


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Return "median (least to most)"."""
    least, middle, most = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def tiny(folder: Path, data: Path) -> list[tuple[str, str]]:
    """Save every 10th step of the tiny model, three times 200 steps."""
    saves: list[float] = []
    for number in range(3):
        options = ("--config.checkpoint.every=10", "--config.train.steps=200")
        saves += train(folder / f"tiny-{number}", data, *options).saves
    ordered = sorted(saves)
    return [
        (f"tiny model: `save` holds the loop, ms, {len(saves)} saves", spread(saves, 1e3)),
        ("– 95th percentile, ms", f"{1e3 * ordered[int(0.95 * len(ordered))]:.1f}"),
    ]


def slow_steps(folder: Path, data: Path) -> list[tuple[str, str]]:
    """Save every 50th of steps that take 150 ms or more, three runs of 100."""
    shares, saves, steps = [], [], []
    for number in range(3):
        run = train(
            folder / f"slow-{number}",
            data,
            "--config.checkpoint.every=50",
            "--config.train.steps=100",
            "--config.train.log_every=10",
            "--config.train.batch_size=64",
        )
        spent = run.accounts
        shares.append(spent["checkpoint"] / sum(spent[k] for k in ("checkpoint", "steps", "data")))
        saves += run.saves
        steps.append(run.step)
    return [
        ("steps that save every 50th: a step, ms", spread(steps, 1e3, 0)),
        ("– `save` holds the loop, ms", spread(saves, 1e3)),
        ("– share of the loop's time, %", spread(shares, 100, 3)),
    ]


def verification(folder: Path, megabytes: int) -> list[tuple[str, str]]:
    """Save, verify and restore one large tree, five times."""
    import numpy as np

    from llm.core import checkpoint

    rng = np.random.default_rng(0)
    leaves = {
        f"w{n}": rng.normal(size=(megabytes << 20) // 32).astype(np.float32) for n in range(8)
    }
    size = sum(leaf.nbytes for leaf in leaves.values()) / 1e6
    held, written, verified, restored = [], [], [], []
    with checkpoint.Checkpointer(folder / "large", keep_last=1) as writer:
        for step in range(1, 6):
            start = time.perf_counter()
            writer.save(step, {"params": leaves})
            held.append(time.perf_counter() - start)
            writer.wait()
            written.append(time.perf_counter() - start)
            start = time.perf_counter()
            assert not checkpoint.verify(folder / "large", step)
            verified.append(size / (time.perf_counter() - start))
            start = time.perf_counter()
            checkpoint.restore(folder / "large", step=step)
            restored.append(size / (time.perf_counter() - start))
    return [
        (f"{size:.0f} MB tree: `save` holds the caller, ms", spread(held, 1e3, 0)),
        ("– written, checksummed and verified on disk after, s", spread(written, 1, 2)),
        ("– verification, MB/s", spread(verified, 1, 0)),
        ("– restore with verification, MB/s", spread(restored, 1, 0)),
    ]


def main() -> None:
    """Print a table of medians, least and most."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "text.jsonl"
        with data.open("w") as file:
            for number in range(2000):
                text = " ".join(str(number * k % 97) for k in range(1, 80))
                file.write(f'{{"id": "{number}", "text": "{text}"}}\n')
        rows = tiny(folder, data) + slow_steps(folder, data)
        rows += verification(folder, options.megabytes)
    print("| what | median (least to most) |\n|---|---|")
    print(*(f"| {what} | {value} |" for what, value in rows), sep="\n")


if __name__ == "__main__":
    main()

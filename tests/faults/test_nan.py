# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity in data and gradients of real runs: survived or refused, never saved."""

import random

import jax
import numpy as np
import pytest

from llm.core import checkpoint
from llm.core.metrics import read_lines
from tests import runs
from tests.faults import poison

pytestmark = pytest.mark.usefixtures("one_device")

STEPS, ROW = 24, 4  # steps of a run; non-finite steps in a row that end it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    words = ("alpha", "beta", "gamma", "list", "returns", "the", "value")
    return runs.write_documents(tmp_path_factory.mktemp("data") / "docs.jsonl", 200, words)


def draw(seed):
    """Return kind, data steps, microbatches, averaging and whether the run must end with 4."""
    rng = random.Random(seed)
    kind, length = rng.choice(poison.KINDS), rng.randint(1, ROW + 2)
    start = rng.randint(0, STEPS - length)
    steps = set(range(start, start + length))
    if length < ROW and rng.random() < 0.5:  # another, apart from the first
        steps |= {step for step in (start + length + 2,) if step < STEPS}
    return kind, sorted(steps), rng.choice((1, 2, 4)), rng.choice((0.0, 0.9)), length >= ROW


def inject(seed, data, workdir):
    kind, steps, microbatches, decay, fatal = draw(seed)
    arguments = poison.arguments(
        workdir,
        data,
        f"--config.train.steps={STEPS}",
        f"--config.train.microbatches={microbatches}",
        f"--config.train.ema_decay={decay}",
        f"--config.train.max_bad_steps={ROW}",
        "--config.checkpoint.every=3",
        "--config.checkpoint.keep_last=20",
    )
    with poison.poisoned(kind, steps):
        code = poison.launch.main("pretrain", arguments, {})
    assert code == (4 if fatal else 0), (kind, steps)
    saved = checkpoint.list_steps(workdir)
    for step in saved:
        tree = checkpoint.restore(workdir, step=step).tree
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)), (step, kind)
    lines = read_lines(workdir / "metrics.jsonl")
    assert all(line["train/loss"] is not None for line in lines if "train/loss" in line)
    records = read_lines(workdir / "bad_batches.jsonl")
    assert {record["reason"] for record in records} <= {"non_finite", "spike"}
    found = [record for record in records if record["reason"] == "non_finite"]
    assert [r["step"] - 1 for r in found] == steps[: len(found)] and len(found[0]["ids"]) == 8
    if not fatal:
        assert saved[-1] == STEPS and len(found) == len(steps)
        assert sum(line.get("train/non_finite", 0) for line in lines) == len(steps)
        assert int(checkpoint.restore(workdir).tree["counters"]["skipped"][0]) == len(steps)
    return fatal


@pytest.mark.parametrize("seed", [0, 2, 4, 6, 7])
def test_a_few_injections(seed, data, tmp_path):
    inject(seed, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("quarter", range(4))
def test_a_hundred_injections(quarter, data, tmp_path):
    seeds = range(100 + 25 * quarter, 125 + 25 * quarter)
    fatal = sum(inject(seed, data, tmp_path / str(seed)) for seed in seeds)
    assert 5 <= fatal <= 20
    print(f"25 injections: {fatal} runs ended with 4, {25 - fatal} went on; 0 poisoned saves")

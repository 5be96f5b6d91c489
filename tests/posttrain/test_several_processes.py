# SPDX-License-Identifier: Apache-2.0
"""Models that learn from their own answers, over two real processes: the same as in one."""

import json
import subprocess
import sys

import pytest

from llm.core.metrics import read_lines
from tests import runs
from tests.posttrain.test_own_answers import save

TINY = (
    "--config.data.count=40",
    "--config.evals.validation.batches=1",
    "--config.train.steps=3",
    "--config.train.batch_size=8",
    "--config.train.log_every=1",
    "--config.train.eval_every=3",
    "--config.checkpoint.every=3",
    "--config.schedule.peak=0.01",
)


def train(workdir, start, config, *more, processes=1):
    """Run the script to its end."""
    more = (*more, "--distributed") if processes > 1 else more
    group = [
        subprocess.Popen(
            [
                *(sys.executable, "scripts/posttrain.py"),
                f"--config=configs/posttrain/{config}.py",
                *(f"--config.init.from={start}", f"--workdir={workdir}", *TINY, *more),
            ],
            cwd=runs.ROOT,
            env=runs.environment(**variables, PROCESS_ID=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for variables in [runs.address(processes)]
        for index in range(processes)
    ]
    for process in group:
        code, output = runs.finish(process)
        assert code == 0, output


def found(workdir, *names):
    """Return what was logged under some names, by step."""
    lines = read_lines(workdir / "metrics.jsonl")
    return {(x["step"], name): x[name] for x in lines for name in names if name in x}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save(tmp_path_factory.mktemp("start"), 0)


def test_rollouts_are_shared_out(start, tmp_path):
    """Groups of four: process 0 answers the first question of a rollout, process 1 the second."""
    options = ("--config.rollout.group=4", "--config.rollout.max_tokens=4")
    train(tmp_path / "one", start, "grpo_puzzle", *options)
    train(tmp_path / "two", start, "grpo_puzzle", *options, processes=2)
    names = ("train/loss", "rollout/reward", "rollout/length", "rollout/entropy")
    names = (*names, "eval/validation/reward", "eval/validation/length")
    one, two = found(tmp_path / "one", *names), found(tmp_path / "two", *names)
    assert one == pytest.approx(two, rel=1e-5, abs=1e-7) and len(one) >= 12
    first = [
        json.loads((tmp_path / name / "rollouts.jsonl").read_text().splitlines()[0])["answers"]
        for name in ("one", "two")
    ]
    assert first[0] == first[1]


@pytest.mark.slow
def test_students_over_a_split_mesh(start, tmp_path):
    """The parameters are split over the processes; each takes a copy to answer with."""
    teacher = save(tmp_path / "teacher", 1, scale=2.0)
    options = (f"--config.objective.teacher={teacher}", "--config.answers.max_tokens=4")
    train(tmp_path / "one", start, "gkd_puzzle", *options)
    mesh = ("--config.mesh.data=1", "--config.mesh.fsdp=2")
    train(tmp_path / "two", start, "gkd_puzzle", *options, *mesh, processes=2)
    names = ("train/loss", "eval/validation/divergence")
    one, two = found(tmp_path / "one", *names), found(tmp_path / "two", *names)
    assert one == pytest.approx(two, rel=1e-4) and len(one) == 5

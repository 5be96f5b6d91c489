# SPDX-License-Identifier: Apache-2.0
"""Loss spikes in real runs: rolled back, the data left out, reproducible bit by bit."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from llm.core import checkpoint
from llm.core.metrics import read_lines
from tests import runs
from tests.faults import poison

pytestmark = pytest.mark.usefixtures("one_device")

SPIKE = [28, 29]  # data steps from which nothing can be learned


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    words = ("alpha", "beta")
    return runs.write_documents(tmp_path_factory.mktemp("data") / "docs.jsonl", 200, words)


def arguments(workdir, data, **spike):
    spike = {"window": 8, "factor": 12.0, "action": "roll_back", "skip": 8, **spike}
    return poison.arguments(
        workdir,
        data,
        "--config.train.steps=45",
        "--config.checkpoint.every=5",
        "--config.schedule.peak=1e-2",
        "--config.schedule.warmup_steps=5",
        *(f"--config.train.spike.{key}={value}" for key, value in spike.items()),
    )


def run(workdir, data, steps=SPIKE, **spike):
    with poison.poisoned("targets", steps):
        return poison.launch.main("pretrain", arguments(workdir, data, **spike), {})


@pytest.fixture(scope="module")
def unstopped(one_device, data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert run(workdir, data) == 0
    return workdir


def test_a_spike_is_rolled_back_and_its_data_left_out(unstopped):
    restored = checkpoint.restore(unstopped)
    assert restored.step == 45 and restored.extra["source"] == {"jumps": [[25, 8]]}
    lines = read_lines(unstopped / "metrics.jsonl")
    backs = [line for line in lines if "train/rolled_back_from" in line]
    assert [(line["step"], line["train/rolled_back_from"]) for line in backs] == [(25, 29)]
    assert lines[-1]["perf/lost_steps"] == 5 and lines[-1]["time/lost"] > 0
    times = [line["time"] for line in lines]
    assert times == sorted(times) and [x["step"] for x in lines] == sorted(x["step"] for x in lines)
    total = sum(value for key, value in lines[-1].items() if key.startswith("time/"))
    assert total == pytest.approx(lines[-1]["time"], rel=0.02)
    (record,) = read_lines(unstopped / "bad_batches.jsonl")
    assert (record["step"], record["reason"], record["data_step"]) == (29, "spike", 28)
    assert len(record["ids"]) == 8 and "alpha" in " ".join(record["text"])
    events = [line["event"] for line in read_lines(unstopped / "logs" / "0.jsonl")]
    assert [e for e in events if e in ("spike", "resume", "roll_back")] == [
        "spike",
        "resume",
        "roll_back",
    ]


@pytest.mark.parametrize(
    "kill", [38, pytest.param(50, marks=pytest.mark.slow)], ids=["before-save", "after-save"]
)
def test_killed_after_the_roll_back_it_ends_the_same(data, unstopped, tmp_path, kill):
    environment = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    plan = json.dumps({"kind": "targets", "steps": SPIKE, "kill": kill})
    child = subprocess.run(
        [sys.executable, poison.__file__, plan, *arguments(tmp_path, data)],
        env={**os.environ, "XLA_FLAGS": environment, "PYTHONPATH": str(poison.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -9 and "back to step 25" in child.stdout, child.stderr
    jumps = checkpoint.restore(tmp_path).extra["source"].get("jumps", [])
    assert jumps == ([] if kill == 38 else [[25, 8]])
    assert run(tmp_path, data) == 0
    one, other = checkpoint.restore(tmp_path), checkpoint.restore(unstopped)
    assert one.step == other.step == 45 and one.extra == other.extra
    jax.tree.map(np.testing.assert_array_equal, one.tree, other.tree)


@pytest.mark.slow
def test_too_many_roll_backs_end_the_run(data, tmp_path):
    assert run(tmp_path, data, steps=list(range(28, 99)), max=2) == 4
    tree = checkpoint.restore(tmp_path)
    assert tree.step <= 28


@pytest.mark.slow
def test_a_spike_is_skipped_where_asked(data, tmp_path):
    assert run(tmp_path, data, action="skip") == 0
    spikes = [line.get("train/spikes", 0) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert sum(spikes) == 2
    records = read_lines(tmp_path / "bad_batches.jsonl")
    assert [(r["data_step"], r["applied"]) for r in records] == [(28, False), (29, False)]

# SPDX-License-Identifier: Apache-2.0
"""Whole runs of reinforcement learning: what they learn, that they resume, that hacks are seen."""

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from llm.core.metrics import read_lines
from tests import runs

pytestmark = pytest.mark.slow

SEEDS = (9, 10, 11)  # coefficients and steps of the configs were chosen on others


def train(workdir, config, *more):
    """Run the entry point in a process of its own until it ends well."""
    finished = begin(workdir, config, *more)
    code, output = runs.finish(finished, timeout=1500)
    assert code == 0, output
    return workdir


def begin(workdir, config, *more):
    path = config if str(config).endswith(".py") else f"configs/posttrain/{config}.py"
    return subprocess.Popen(
        [sys.executable, "scripts/posttrain.py", f"--config={path}", f"--workdir={workdir}", *more],
        cwd=runs.ROOT,
        env=runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def values(workdir, key):
    """Return what was logged under a key, in the order of steps."""
    return [line[key] for line in read_lines(workdir / "metrics.jsonl") if key in line]


@pytest.fixture(scope="module", params=SEEDS)
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def tuned(seed, tmp_path_factory):
    """A model that knows the form of an answer, and is right now and then."""
    workdir = tmp_path_factory.mktemp("tuned")
    return train(workdir, "puzzle_sft", f"--config.seed={seed}")


def gain(workdir, key="eval/validation/reward"):
    found = values(workdir, key)
    return found[-1] - found[0]


@pytest.mark.parametrize("config", ["grpo_puzzle", "rloo_puzzle", "ppo_puzzle"])
def test_held_out_reward_rises(tuned, seed, tmp_path, config):
    train(tmp_path, config, f"--config.init.from={tuned}", f"--config.seed={seed}")
    assert gain(tmp_path) >= 0.3
    if config == "ppo_puzzle":  # the coefficient is adapted so that the policy stays this near
        target = json.loads((tmp_path / "config.json").read_text())["rollout"]["kl"]["target"]
        found = values(tmp_path, "rollout/kl")
        assert np.mean(found[-len(found) // 4 :]) == pytest.approx(target, rel=0.3)
        assert 1.0 not in values(tmp_path, "rollout/sign_gold"), "an honest run raises no alarm"


def test_a_reward_model_teaches_what_it_learned(tuned, seed, tmp_path):
    start = f"--config.init.from={tuned}", f"--config.seed={seed}"
    judge = train(tmp_path / "reward", "puzzle_reward", *start)
    assert values(judge, "eval/validation/reward_accuracy")[-1] > 0.85
    learned = train(
        tmp_path / "ppo",
        "ppo_reward_puzzle",
        *start,
        f"--config.rollout.rewards.model.path={judge}",
    )
    assert gain(learned, "eval/validation/reward_exact") >= 0.3
    assert 1.0 not in values(learned, "rollout/sign_gold"), "an honest run raises no alarm"


HACKED = """
from ml_collections import ConfigDict

from configs.posttrain import ppo_puzzle


def get_config():
    config = ppo_puzzle.get_config()
    config.rollout.rewards = ConfigDict(
        {"pattern": {"weight": 1.0, "regex": "5"}, "exact": {"weight": 0.0}}
    )
    config.rollout.kl.place = "none"
    return config
"""


def test_a_planted_hack_is_seen(tuned, seed, tmp_path):
    """A five is always rewarded, and hardly ever the largest of four digits."""
    (tmp_path / "hacked.py").write_text(HACKED)
    options = f"--config.init.from={tuned}", f"--config.seed={seed}", "--config.train.steps=160"
    run = train(tmp_path / "run", tmp_path / "hacked.py", *options)
    assert gain(run, "eval/validation/reward_pattern") > 0.5
    assert gain(run, "eval/validation/reward_exact") < -0.2
    assert 1.0 in values(run, "rollout/sign_gold")


def test_a_killed_run_ends_with_the_same_rollouts_and_parameters(tmp_path_factory, tmp_path):
    """Saves fall into the middle of rollouts, which serve four steps each."""
    tuned = train(tmp_path_factory.mktemp("start"), "puzzle_sft", "--config.train.steps=20")
    options = (
        f"--config.init.from={tuned}",
        "--config.train.steps=40",
        "--config.train.log_every=1",
        "--config.train.eval_every=0",
        "--config.checkpoint.every=3",
    )
    unstopped = train(tmp_path / "unstopped", "ppo_puzzle", *options)
    killed, rng = tmp_path / "killed", random.Random(5)
    for _ in range(4):
        process = begin(killed, "ppo_puzzle", *options)
        runs.wait_for_step(killed, runs.last_step(killed) + rng.randint(2, 9), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    train(killed, "ppo_puzzle", *options)
    (step, tree, losses), (same, other, again) = runs.result(unstopped), runs.result(killed)
    assert step == same == 40 and losses == again
    runs.same_bits(tree, other)

    def rollouts(workdir):
        lines = (workdir / "rollouts.jsonl").read_text().splitlines()
        return {line["rollout"]: line["rows"] for line in map(json.loads, lines)}

    assert rollouts(unstopped) == rollouts(killed) and len(rollouts(killed)) == 10

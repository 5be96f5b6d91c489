# SPDX-License-Identifier: Apache-2.0
"""Rounds: what each stage is given, that pairs add up, that a stopped run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm import files, main
from llm.core import config as configs
from llm.errors import ConfigError, DataError
from llm.posttrain import rounds
from llm.posttrain.feedback import said
from llm.posttrain.prompts import Task
from tests import runs

TASKS = [Task(f"Question {i}?", str(i)) for i in range(10)]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


class Stages:
    """Stand-ins that note what they were given; they die after so many calls."""

    def __init__(self, calls=10**9, people=False, accuracy=0.9):
        self.calls, self.people, self.accuracy, self.seen = calls, people, accuracy, []

    def note(self, what, config, workdir):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        self.seen.append((what, Path(workdir).name, config))

    def collect(self, config, workdir):
        self.note("collect", config, workdir)
        prompts = [row["prompt"] for row in lines(config.path)]
        pairs = [{"prompt": p, "chosen": said("a"), "rejected": said("b")} for p in prompts]
        folder = files.path(workdir)
        folder.mkdir(exist_ok=True)
        name = "answers.jsonl" if self.people else "preferences.jsonl"
        (folder / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        files.write_json(folder / "results.json", [{"metrics": {"score_mean": {"value": 0.5}}}])

    def train(self, config, workdir):
        self.note(config.objective.name, config, workdir)
        folder = files.path(workdir)
        folder.mkdir(exist_ok=True)
        rows = ({"step": 0, "eval/validation/reward": 0.1}, {"step": 4, "train/loss": 1.0})
        rows = (*rows, {"step": 4, "eval/validation/reward": 0.2})
        if config.objective.name == "reward":
            rows = ({"step": 4, "eval/validation/reward_accuracy": self.accuracy},)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function (stages, **settings) -> (rounds.json, what the stages were given)."""
    monkeypatch.chdir(runs.ROOT)

    def run(stages, folder="run", **settings):
        config = configs.load_file("configs/rounds/tiny.py")
        config.start, config.prompts = "the-start", 4
        config.update(settings)
        made = rounds.run(
            config, str(tmp_path / folder), rounds.Stages(stages.collect, stages.train), TASKS
        )
        return made, stages.seen

    return run


def test_what_a_round_gives_its_stages(start, tmp_path):
    made, seen = start(Stages(), origin="last")
    assert [what for what, _, _ in seen] == ["collect", "reward", "ppo"] * 3
    first = {what: config for what, _, config in seen[:3]}
    third = {what: config for what, _, config in seen[6:]}
    root = tmp_path / "run"
    assert first["collect"].model == first["reward"].init["from"] == "the-start"
    assert first["ppo"].init["from"] == "the-start"
    second_policy = str(root / "round-2" / "policy")
    assert third["collect"].model == third["ppo"].init["from"] == second_policy
    assert third["reward"].init["from"] == "the-start"
    assert third["ppo"].rollout.rewards.model.path == str(root / "round-3" / "reward")
    assert len({config.seed for _, _, config in seen[::3]}) == 3
    # Of ten prompts each is asked once before two of them come again.
    asked = [row["prompt"] for n in (1, 2, 3) for row in lines(root / f"round-{n}/prompts.jsonl")]
    assert len(set(asked[:10])) == 10 and asked[10:] == asked[:2]
    # The reward model of a round learns from the pairs of all rounds so far.
    told = [[row["prompt"] for row in lines(root / f"round-{n}/pairs.jsonl")] for n in (1, 2, 3)]
    assert told == [asked[:4], asked[:8], asked]
    assert [one["pairs"] for one in made] == [4, 8, 12]
    assert made[2]["before"] == {"validation/reward": 0.1}
    assert made[2]["after"] == {"validation/reward": 0.2}


def test_a_policy_may_begin_anew_each_round(start):
    _, seen = start(Stages(), origin="start")
    assert {c.init["from"] for what, _, c in seen if what == "ppo"} == {"the-start"}
    assert seen[3][2].model.endswith("round-1/policy")  # the newest is who answers


def test_a_stopped_run_does_no_finished_round_again(start):
    whole, _ = start(Stages(), "whole")
    with pytest.raises(KeyboardInterrupt):
        start(Stages(calls=5))  # in the second round
    made, seen = start(Stages())
    assert [what for what, _, _ in seen] == ["collect", "reward", "ppo"] * 2
    assert made == whole
    assert start(Stages(calls=0))[0] == made  # nothing is left to do
    assert len(start(Stages(), rounds=4)[0]) == 4
    with pytest.raises(DataError, match="another prompts"):
        start(Stages(), prompts=5)


def test_people_are_waited_for(start, tmp_path):
    with pytest.raises(DataError, match=r"round-1.labels") as caught:
        start(Stages(people=True), labels="people", rounds=1)
    assert "scripts/label.py" in str(caught.value) and "answers.jsonl" in str(caught.value)
    labels = tmp_path / "run" / "round-1" / "labels"
    labels.mkdir()
    pair = {"prompt": "Question 1?", "chosen": said("x"), "rejected": said("y")}
    (labels / "preferences.jsonl").write_text(json.dumps(pair) + "\n")
    made, _ = start(Stages(people=True), labels="people", rounds=1)
    assert made[0]["pairs"] == 1
    assert lines(tmp_path / "run" / "round-1" / "pairs.jsonl") == [pair]


def test_a_reward_model_that_learned_nothing_is_not_followed(start):
    stages = Stages(accuracy=0.6)
    with pytest.raises(DataError, match="60% of its held-out pairs"):
        start(stages)
    assert [what for what, _, _ in stages.seen] == ["collect", "reward"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("labels", "nobody", "nobody"),
        ("origin", "first", "first"),
        ("rounds", 0, "rounds=0"),
        ("collect.maker.name", "judge", "collect.maker.name"),
        ("reward.objective.name", "dpo", "reward.objective.name"),
        ("reward.data.source", "puzzle_preferences", "reward.data.source"),
        ("policy.rollout.rewards", {"exact": {"weight": 1.0}}, "policy.rollout.rewards"),
    ],
)
def test_wrong_settings_are_named_before_anything_runs(key, value, named, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.ROOT)
    config = configs.load_file("configs/rounds/tiny.py")
    *path, last = key.split(".")
    section = config
    for part in path:
        section = section[part]
    with section.ignore_type():
        section[last] = value
    with pytest.raises(ConfigError, match=named):
        main.rounds(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rounds_learn_what_was_judged(tmp_path):
    """The verifier judges 600 prompts; only the reward models know what it said."""
    for name, *options in (
        ("posttrain.py", "--config=configs/posttrain/puzzle_sft.py", f"--workdir={tmp_path}/sft"),
        (
            "rounds.py",
            "--config=configs/rounds/tiny.py",
            f"--config.start={tmp_path}/sft",
            f"--workdir={tmp_path}/rounds",
        ),
    ):
        done = subprocess.run(
            [sys.executable, f"scripts/{name}", *options],
            cwd=runs.ROOT,
            env=runs.environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    made = files.read_json(tmp_path / "rounds" / "rounds.json")
    key = "validation/reward_exact"
    assert made[-1]["after"][key] - made[0]["before"][key] >= 0.3
    assert (
        made[-1]["collected"]["score_mean"]["value"] > made[0]["collected"]["score_mean"]["value"]
    )
    assert 0 < made[0]["pairs"] < made[1]["pairs"] < made[2]["pairs"]

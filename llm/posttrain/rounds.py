# SPDX-License-Identifier: Apache-2.0
"""Iterated rounds of learning from preferences (Bai et al. 2022, arXiv:2204.05862, section 4.5).

In every round the newest policy answers prompts that it has not been asked, the answers are
judged, a reward model learns from the judgements of all rounds so far, and the policy learns from
the reward model. Each part is a stage with a folder of its own, which resumes by itself; a round
that is done is in rounds.json and is not done again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm import files
from llm.core import config as configs
from llm.core import lock
from llm.core.metrics import read_lines
from llm.errors import ConfigError, DataError, unknown
from llm.posttrain.feedback import require_same_settings
from llm.posttrain.prompts import Task

LABELS = ("scorer", "people")
ORIGINS = ("last", "start")


class Stages(NamedTuple):
    """What a round is made of: (config, workdir) -> anything."""

    collect: Callable[[Any, str], Any]
    train: Callable[[Any, str], Any]


def check(config: Any) -> None:
    """Check what the rounds rely on.

    Raises:
        ConfigError: a setting is unknown, or the sections do not go together.
    """
    for name, known in (("labels", LABELS), ("origin", ORIGINS)):
        if config[name] not in known:
            raise unknown(name, config[name], known)
    if min(config.rounds, config.prompts) < 1:
        raise ConfigError(
            f"config.rounds={config.rounds}, config.prompts={config.prompts}.", "Use 1 or more."
        )
    for section, key, expected, found in (
        ("collect", "maker.name", "best_of", config.collect.maker.name),
        ("reward", "objective.name", "reward", config.reward.objective.name),
        ("reward", "data.source", "preferences", config.reward.data.source),
    ):
        if found != expected:
            raise ConfigError(
                f"config.{section}.{key}={found!r}: a round needs {expected!r} there.",
                f"Set config.{section}.{key}={expected!r}.",
            )
    if "model" not in config.policy.get("rollout", {}).get("rewards", {}):
        raise ConfigError(
            "config.policy.rollout.rewards has no 'model': the judgements would teach nothing.",
            "Add {'model': {'weight': 1.0, 'path': ''}}; each round sets its path.",
        )


def run(config: Any, workdir: str, stages: Stages, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Carry out the rounds that are not done; return what rounds.json says of all.

    Args:
        config: `start` (the model to begin with), `rounds`, `prompts` (asked in a round), `labels`
            ("scorer": config.collect judges; "people": scripts/label.py does), `origin` (a policy
            starts from, and is kept near, the "last" policy or the "start"), `least_accuracy` (of
            a reward model on held-out pairs), `seed`, and the configs of the stages: `collect`,
            `reward`, `policy`.
        workdir: receives round-1, round-2, … and rounds.json.
        stages: what runs those.
        tasks: what is asked.

    Raises:
        ConfigError: see `check`.
        DataError: the workdir has rounds of other settings, labels of people are missing, a
            round gave no pair, or its reward model learned too little.
    """
    check(config)
    with lock.hold(workdir):
        require_same_settings(configs.to_dict(config), workdir, free=("rounds",))
        place = files.path(workdir) / "rounds.json"
        done = files.read_json(place) if place.exists() else []
        for number in range(len(done) + 1, int(config.rounds) + 1):
            done.append(_round(config, files.path(workdir), number, stages, tasks))
            files.write_json(place, done)
        for one in done:
            print(_line(one))
    return done


def _round(
    config: Any, root: Any, number: int, stages: Stages, tasks: Sequence[Task]
) -> dict[str, Any]:
    folder = root / f"round-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    newest = config.start if number == 1 else str(root / f"round-{number - 1}" / "policy")
    seed = int(config.seed) + number
    asked = _write_prompts(folder / "prompts.jsonl", _asked(config, number, tasks))

    collect = _copy(config.collect, seed)
    collect.model, collect.path, collect.limit = newest, str(asked), 0
    stages.collect(collect, str(folder / "collect"))
    pairs, count = _write_pairs(config, root, number)

    reward = _copy(config.reward, seed)
    reward.init["from"], reward.data.path = config.start, str(pairs)
    stages.train(reward, str(folder / "reward"))
    judged = _measured(folder / "reward")[1]
    _require_accuracy(judged, float(config.least_accuracy), folder / "reward")

    policy = _copy(config.policy, seed)
    policy.init["from"] = newest if config.origin == "last" else config.start
    policy.rollout.rewards.model.path = str(folder / "reward")
    stages.train(policy, str(folder / "policy"))
    before, after = _measured(folder / "policy")
    return {
        "round": number,
        "pairs": count,
        "collected": files.read_json(folder / "collect" / "results.json")[0]["metrics"],
        "reward": judged,
        "before": before,
        "after": after,
    }


def _copy(section: Any, seed: int) -> Any:
    copied = section.copy_and_resolve_references()
    copied.seed = seed
    return copied


def _asked(config: Any, number: int, tasks: Sequence[Task]) -> list[Task]:
    """Return the prompts of a round: each once before any comes again."""
    order = np.random.default_rng(int(config.seed)).permutation(len(tasks))
    count = min(int(config.prompts), len(tasks))
    places = np.arange((number - 1) * count, number * count) % len(tasks)
    return [tasks[index] for index in order[places].tolist()]


def _write_prompts(path: Path, tasks: Sequence[Task]) -> Path:
    rows = [{"prompt": task.prompt, "answer": task.answer} for task in tasks]
    files.write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write_pairs(config: Any, root: Any, number: int) -> tuple[Path, int]:
    """Gather the pairs of the rounds so far; return their file and how many they are.

    Raises:
        DataError: people have not labelled this round yet, or there is no pair.
    """
    found: list[str] = []
    by = {"scorer": "collect", "people": "labels"}[config.labels]
    for one in range(1, number + 1):
        source = root / f"round-{one}" / by / "preferences.jsonl"
        if not source.exists():
            answers = root / f"round-{one}" / "collect" / "answers.jsonl"
            raise DataError(
                f"Round {one} waits for labels: {source} is missing.",
                "Run python scripts/label.py --config=configs/label/tiny.py "
                f"--config.path={answers} --workdir={source.parent}, label, and start again.",
            )
        found += source.read_text("utf-8").splitlines()
    if not found:
        raise DataError(
            "No two answers were judged differently.",
            "Raise config.prompts, config.collect.maker.n or config.collect.sampling.temperature.",
        )
    path = root / f"round-{number}" / "pairs.jsonl"
    files.write_atomic(path, "\n".join(found) + "\n")
    return path, len(found)


def _require_accuracy(judged: dict[str, float], least: float, workdir: Any) -> None:
    """Refuse a reward model that did not learn: a policy would follow its noise.

    Raises:
        DataError: it orders fewer held-out pairs rightly than asked.
    """
    found = judged.get("validation/reward_accuracy", 1.0)
    if found < least:
        raise DataError(
            f"{workdir} orders {found:.0%} of its held-out pairs rightly, less than {least:.0%}.",
            "Raise config.prompts or config.reward.train.steps, lower config.reward.schedule.peak "
            "or config.least_accuracy, and choose another --workdir.",
        )


def _measured(workdir: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Return the first and the last held-out figures of a run."""
    lines = [
        {k.removeprefix("eval/"): v for k, v in line.items() if k.startswith("eval/")}
        for line in read_lines(workdir / "metrics.jsonl")
    ]
    lines = [line for line in lines if line]
    return (lines[0], lines[-1]) if lines else ({}, {})


def _line(one: dict[str, Any]) -> str:
    """Say in a line what a round did."""
    shown = [f"round {one['round']}: {one['pairs']} pairs"]
    shown += [f"{k} {v:.3f}" for k, v in one["reward"].items() if k.endswith("reward_accuracy")]
    shown += [
        f"{k} {one['before'].get(k, float('nan')):.3f} -> {v:.3f}"
        for k, v in one["after"].items()
        if "reward" in k
    ]
    return ", ".join(shown)

# SPDX-License-Identifier: Apache-2.0
"""Rollouts as a source of training batches: the policy answers, rewards judge, rows come out.

One rollout of batch_size · minibatches answers serves epochs · minibatches steps. It is a function
of the seed, its number and the parameters at its first step; what later steps still need of it is
part of `state`, so that a run killed between them goes on with the same rows.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from llm import files
from llm.core import config as configs
from llm.core import logs, shards
from llm.data import permutation
from llm.errors import ConfigError, unknown
from llm.generate.language_model import LanguageModel
from llm.generate.requests import Completion
from llm.posttrain import advantages, answering, monitors, packed, rewards
from llm.posttrain.prompts import Task, Tasks

KL_PLACES = ("none", "reward", "loss")
_SHOWN = 4  # answers of a rollout that are recorded


class KL(NamedTuple):
    """The pull to the reference, which is the model that the run started from.

    Attributes:
        place: "reward" (PPO, RLOO, REINFORCE++) subtracts it from the reward, "loss" (GRPO) adds
            it to the loss, "none" only measures it.
        estimator: of the reward's: "k1", "k2", "k3"; the loss has its own in config.objective.kl.
        coef: its coefficient; at first, where there is a target.
        target: nats per answer that the coefficient is adapted to; 0 keeps it fixed.
        horizon: see `advantages.adapt`.
    """

    place: str = "none"
    estimator: str = "k1"
    coef: float = 0.0
    target: float = 0.0
    horizon: float = 2000.0


class Settings(NamedTuple):
    """The rollout section of a config.

    Attributes:
        rewards: name -> {"weight", "function", options…}; see `llm.posttrain.rewards`.
        group: answers per prompt.
        minibatches: updates that one pass over a rollout makes.
        epochs: passes over each rollout.
        max_tokens: of an answer.
        temperature, top_k, top_p: of sampling; training divides its logits by the temperature too.
        advantages: {"name" of `advantages.ADVANTAGES`, options…}.
        kl: see `KL`.
        importance: {"name", "most", "least"}; see `advantages.importance`. Sampling and training
            share their arithmetic here up to rounding, so that the default is "none".
        missing_eos_penalty: taken off the reward of answers that did not end by themselves.
        mask_truncated: leave such answers out of the loss (DAPO's overlong filtering).
        reward_clip: largest absolute reward of an answer; 0 for no limit.
        gold: the reward that the monitors trust; give it weight 0 to keep it out of training.
        monitors: see `monitors.Limits`.
        rows: answers that are drawn together.
        chunk: positions whose logits exist at once when answers are scored; 0 for all.
    """

    rewards: Mapping[str, Any]
    group: int = 8
    minibatches: int = 1
    epochs: int = 1
    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    advantages: Mapping[str, Any] = MappingProxyType({"name": "group"})
    kl: Mapping[str, Any] = MappingProxyType({})
    importance: Mapping[str, Any] = MappingProxyType({"name": "none"})
    missing_eos_penalty: float = 0.0
    mask_truncated: bool = False
    reward_clip: float = 0.0
    gold: str = ""
    monitors: Mapping[str, Any] = MappingProxyType({})
    rows: int = 64
    chunk: int = 0


class Importance(NamedTuple):
    """See `advantages.importance`."""

    name: str = "none"
    most: float = 3.0
    least: float = 0.0


class Rules(NamedTuple):
    """A checked rollout section."""

    settings: Settings
    judge: rewards.Judge
    estimate: Any  # (judged) -> advantages
    kl: KL
    importance: Importance
    limits: monitors.Limits


def check(section: Mapping[str, Any]) -> Rules:
    """Bind every part of a rollout section.

    Raises:
        ConfigError: a name or an option is unknown or out of range.
    """
    settings = Settings(**configs.bind(Settings, section, "rollout"))
    judge = rewards.judge(settings.rewards)
    kl = KL(**configs.bind(KL, settings.kl, "rollout.kl"))
    weights = Importance(**configs.bind(Importance, settings.importance, "rollout.importance"))
    limits = monitors.Limits(**configs.bind(monitors.Limits, settings.monitors, "rollout.monitors"))
    name = settings.advantages.get("name", "")
    function = configs.choose(name, advantages.ADVANTAGES, "rollout.advantages")
    options = configs.bind(function, settings.advantages, "rollout.advantages", given=("judged",))
    for found, known, what in (
        (kl.place, KL_PLACES, "rollout.kl.place"),
        (kl.estimator, ("k1", "k2", "k3"), "rollout.kl.estimator"),
        (weights.name, advantages.IMPORTANCE, "rollout.importance.name"),
        (settings.gold, ("", *settings.rewards), "rollout.gold"),
    ):
        if found not in known:
            raise unknown(what, found, known)
    _check_numbers(settings, weights)
    return Rules(settings, judge, lambda judged: function(judged, **options), kl, weights, limits)


def _check_numbers(settings: Settings, weights: Importance) -> None:
    s = settings
    if s.temperature <= 0:
        raise ConfigError(
            f"config.rollout.temperature={s.temperature}: a policy learns from what it draws.",
            "Use a temperature above 0, usually 1.",
        )
    if min(s.group, s.minibatches, s.epochs, s.max_tokens) < 1:
        raise ConfigError("A number of config.rollout is below 1.", "Use 1 or more.")
    if s.group < 2 and s.advantages.get("name") in ("group", "leave_one_out"):
        raise ConfigError(
            "An answer alone has no others to be compared with.",
            "Set config.rollout.group to 2 or more, or choose other advantages.",
        )
    if weights.name != "none" and (s.temperature, s.top_k, s.top_p) != (1.0, 0, 1.0):
        raise ConfigError(
            "The sampler reports log-probabilities of the model itself, so that importance "
            "weights need temperature=1, top_k=0 and top_p=1.",
            "Set them, or config.rollout.importance.name='none'.",
        )


class Collected(NamedTuple):
    """A rollout: its number, and its rows as arrays whose first axis is the answers."""

    number: int
    arrays: dict[str, np.ndarray]


class Rollouts:
    """Training batches that the policy makes itself.

    Args:
        rules: see `check`.
        tasks: what is asked.
        start: the model the run starts from: the reference, with its tokenizer.
        model: the policy, whose parameters come with every call.
        batch_size: rows of a batch.
        length: tokens of a row: prompt and answer.
        seed: of prompts and answers.
        record: takes a line about every rollout, with its first answers and a hash of its rows.
        share: (index, count): which slice of every batch this process reads.

    Of several processes each answers its part of the prompts with a copy of the parameters on its
    first device; what they made is put together, so that all know the whole rollout.

    Raises:
        ConfigError: the sizes do not go together, or no prompt leaves room for an answer.
    """

    def __init__(
        self,
        rules: Rules,
        tasks: Tasks,
        start: LanguageModel,
        model: Any,
        *,
        batch_size: int,
        length: int,
        seed: int,
        record: Callable[[str], None] = lambda line: None,
        share: tuple[int, int] = (0, 1),
    ):
        s = rules.settings
        self.rules, self.start, self.model = rules, start, model
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.size = batch_size * s.minibatches
        processes = jax.process_count()
        if self.size % (s.group * processes) or batch_size % processes:
            raise ConfigError(
                f"A rollout of {self.size} answers has no whole groups of {s.group} for each of "
                f"{processes} processes.",
                "Make config.train.batch_size * config.rollout.minibatches a multiple of both.",
            )
        self.share = share
        self.tasks = answering.fitting(tasks.items, start, length - s.max_tokens)
        self.sampler = answering.Sampler(
            start.tokenizer, model, min(s.rows, self.size // processes), s.max_tokens
        )
        self._fingerprint = tasks.fingerprint
        self.score = answering.Scorer(model, batch_size // processes, s.chunk)
        self.score_reference = answering.Scorer(start.model, batch_size // processes, s.chunk)
        self.record = record
        self.coef = rules.kl.coef
        self.history: list[dict[str, float]] = []
        self._current: Collected | None = None
        self._next = 0  # the step after the last one that was served
        self._measured: list[dict[str, float]] = []

    @property
    def steps(self) -> int:
        """Steps that one rollout serves."""
        return self.rules.settings.epochs * self.rules.settings.minibatches

    def batch(self, step: int, params: Any = None) -> dict[str, np.ndarray]:
        """Return the rows of a step; at the first of a rollout the policy answers anew."""
        number, place = divmod(step, self.steps)
        if self._current is None or self._current.number != number:
            self._current = self._collect(number, params)
        self._next = step + 1
        epoch, part = divmod(place, self.rules.settings.minibatches)
        order = permutation.permute(
            np.arange(self.size), self.size, permutation.key("rows", self.seed, number, epoch)
        )
        index, count = self.share
        local = self.batch_size // count
        rows = order[part * self.batch_size + index * local :][:local]
        return {name: array[rows] for name, array in self._current.arrays.items()}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON: the rollout in use, and what is adapted."""
        kept: dict[str, Any] = {"tasks": self._fingerprint}
        kept |= {"coef": self.coef, "history": self.history}
        if self._current is not None and self._next % self.steps:
            kept["number"] = self._current.number
            kept["arrays"] = packed.pack(self._current.arrays)
        return kept

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Raises:
            DataError: it asked other questions.
        """
        answering.require_same_tasks(state, self._fingerprint)
        self.coef = float(state.get("coef", self.coef))
        self.history = [dict(row) for row in state.get("history", ())]
        self._current = None
        if "arrays" in state:
            self._current = Collected(int(state["number"]), packed.unpack(state["arrays"]))

    def metrics(self) -> dict[str, float]:
        """Return means over the rollouts since the last call; {} if there were none."""
        rows, self._measured = self._measured, []
        keys = dict.fromkeys(key for row in rows for key in row)
        return {
            f"rollout/{key}": float(np.mean([row[key] for row in rows if key in row]))
            for key in keys
        }

    def _collect(self, number: int, params: Any) -> Collected:
        s, started = self.rules.settings, time.perf_counter()
        params = shards.own_copy(params)
        asked = answering.draw(self.tasks, number, self.size // s.group, self.seed)
        tasks = shards.own_part([task for task in asked for _ in range(s.group)])
        seeds = np.random.default_rng([self.seed, number]).integers(2**32, size=self.size)
        with shards.alone():
            answers = self.sampler.answer(
                params,
                tasks,
                shards.own_part(seeds.tolist()),
                temperature=s.temperature,
                top_k=s.top_k,
                top_p=s.top_p,
            )
            drawn = time.perf_counter()
            rows = answering.to_rows([task.ids for task in tasks], answers, self.length)
            rows["temperature"] = np.full(len(tasks), s.temperature, np.float32)
            scores = self.score(params, rows)
            reference = self.score_reference(self.start.params, rows)["logps"]
            found, total = self._judge(tasks, answers)
        ended = np.asarray([answer.reason == "stop" for answer in answers])
        line = _Line(tasks[:_SHOWN], answers[:_SHOWN], total[:_SHOWN])
        made = _Made(*shards.joined((rows, scores, reference, found, total, ended)))
        arrays = self._train_on(made)
        measured = self._measure(made)
        seconds = time.perf_counter() - started
        measured["seconds"] = seconds
        measured["tokens_per_s"] = made.rows["weights"].sum() / (drawn - started)
        self._measured.append(measured)
        self._adapt(measured["kl"])
        self.record(line.text(number, arrays))
        return Collected(number, arrays)

    def _judge(
        self, tasks: Sequence[Task], answers: Sequence[Completion]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return every reward [B], and the total [B] with what is taken off it."""
        s = self.rules.settings
        samples = answering.samples(tasks, answers)
        found = self.rules.judge.each(samples)
        total = self.rules.judge.total(found)
        if s.reward_clip:
            total = np.clip(total, -s.reward_clip, s.reward_clip)
        ended = np.asarray([sample.stopped for sample in samples])
        return found, total - s.missing_eos_penalty * ~ended

    def _train_on(self, made: "_Made") -> dict[str, np.ndarray]:
        """Return what the objectives read; see `llm.posttrain.policy`."""
        rows, scores, reference = made.rows, made.scores, made.reference
        kl, mask = self.rules.kl, rows["weights"]
        penalties = np.zeros(mask.shape)
        if kl.place == "reward":
            penalties = self.coef * _kl(scores["logps"], reference, kl.estimator) * mask
        judged = self.rules.estimate(
            advantages.Judged(
                made.total, penalties, mask, scores.get("values", ()), self.rules.settings.group
            )
        )
        arrays = {**rows, "old_logps": scores["logps"]}
        arrays["advantages"] = judged.advantages.astype(np.float32)
        if self.rules.settings.mask_truncated:
            arrays["weights"] = mask * made.ended[:, None].astype(np.float32)
        share = arrays["weights"].sum() / self.size
        arrays["share"] = np.full(self.size, share, np.float32)
        if judged.returns is not None and judged.mask is not None:
            arrays["old_values"] = scores["values"]
            arrays["returns"] = judged.returns.astype(np.float32)
            arrays["value_weights"] = judged.mask.astype(np.float32)
        if kl.place == "loss":
            arrays["ref_logps"] = reference
            arrays["kl_coef"] = np.full(self.size, self.coef, np.float32)
        weigh = self.rules.importance
        if weigh.name != "none":
            arrays["correction"] = advantages.importance(
                scores["logps"], rows["sampler_logps"], mask, **weigh._asdict()
            ).astype(np.float32)
        del arrays["sampler_logps"]
        return arrays

    def _measure(self, made: "_Made") -> dict[str, float]:
        """Return the figures of a rollout, and the monitors' signs."""
        rows, scores, reference, found, total, ended = made
        mask, s = rows["weights"], self.rules.settings
        count = mask.sum()
        far = _kl(scores["logps"], reference, "k1") * mask
        measured = {
            "reward": _mean(total),
            "reward_std": float(np.nanstd(total)) if not np.isnan(total).all() else 0.0,
            **_named(found),
            "kl": float(far.sum(axis=1).mean()),
            "entropy": float((scores["entropy"] * mask).sum() / count),
            "length": float(mask.sum(axis=1).mean()),
            "truncated": float(np.mean(~ended)),
            "equal_groups": _equal(total, s.group),
        }
        if (s.temperature, s.top_k, s.top_p) == (1.0, 0, 1.0):
            gap = np.abs(scores["logps"] - rows["sampler_logps"]) * mask
            measured["sampler_gap"] = float(gap.max())
        if s.gold:
            measured["gold"] = _mean(found[s.gold])
            measured["gold_std"] = float(np.nanstd(found[s.gold]))
        if self.rules.kl.place != "none":
            measured["kl_coef"] = float(self.coef)
        names = ("reward", "reward_std", "length", "entropy", "kl", "gold", "gold_std")
        self.history.append({key: measured[key] for key in names if key in measured})
        signs = monitors.signs(self.history, self.rules.limits)
        self.history = monitors.kept(self.history, self.rules.limits)
        if signs.get("signs"):
            logs.event("reward_hacking", signs=signs)
        return {**measured, **signs}

    def _adapt(self, observed: float) -> None:
        kl = self.rules.kl
        if kl.target:
            self.coef = advantages.adapt(
                self.coef, observed, self.size, target=kl.target, horizon=kl.horizon
            )


class HeldOut:
    """Held-out questions: measured by answering them at the temperature of training.

    Args:
        rollouts: of the same run; its sampler answers.
        tasks: what is asked.
    """

    def __init__(self, rollouts: Rollouts, tasks: Tasks):
        settings = rollouts.rules.settings
        self.rollouts = rollouts
        self.tasks = answering.fitting(
            tasks.items, rollouts.start, rollouts.length - settings.max_tokens
        )

    def measure(self, params: Any, count: int = 0) -> dict[str, float]:
        """Return rewards and lengths over the first `count` questions; 0 for all."""
        tasks = self.tasks[:count] if count else self.tasks
        s, params = self.rollouts.rules.settings, shards.own_copy(params)
        with shards.alone():
            answers = self.rollouts.sampler.answer(
                params, tasks, list(range(len(tasks))), temperature=s.temperature
            )
        found = self.rollouts.rules.judge.each(answering.samples(tasks, answers))
        return {
            "reward": _mean(self.rollouts.rules.judge.total(found)),
            **_named(found),
            "length": float(np.mean([len(answer.tokens) for answer in answers])),
            "truncated": float(np.mean([answer.reason != "stop" for answer in answers])),
        }


class _Made(NamedTuple):
    """A rollout before it is turned into rows to train on; first axes are the answers."""

    rows: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    reference: np.ndarray  # [B, T] log-probabilities
    found: dict[str, np.ndarray]  # every reward, [B]
    total: np.ndarray  # [B]
    ended: np.ndarray  # [B] bool


class _Line(NamedTuple):
    """The first answers of a rollout, to be recorded."""

    tasks: Sequence[Task]
    answers: Sequence[Completion]
    rewards: np.ndarray

    def text(self, number: int, arrays: Mapping[str, np.ndarray]) -> str:
        """Return the record of a rollout as JSON, with a hash of its rows."""
        shown = [
            {"prompt": task.prompt, "answer": task.answer, "text": said.text, "reward": float(r)}
            for task, said, r in zip(*self, strict=True)
        ]
        together = b"".join(arrays[name].tobytes() for name in sorted(arrays))
        line = {"rollout": number, "rows": files.hash_bytes(together), "answers": shown}
        return json.dumps(line, ensure_ascii=False)


def _kl(logps: np.ndarray, ref: np.ndarray, kind: str) -> np.ndarray:
    """Return `policy_loss.kl` in float64, on the host."""
    delta = ref.astype(np.float64) - logps
    if kind == "k1":
        return -delta
    return delta**2 / 2 if kind == "k2" else np.exp(delta) - delta - 1


def _named(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean of every reward, where there are several."""
    means = {f"reward_{name}": _mean(values) for name, values in found.items()}
    return means if len(means) > 1 else {}


def _mean(values: np.ndarray) -> float:
    """Return the mean of what is not NaN; 0 of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _equal(total: np.ndarray, group: int) -> float:
    """Return the share of groups whose answers earned the same: they teach nothing."""
    grouped = np.nan_to_num(total).reshape(-1, group)
    return float((np.ptp(grouped, axis=1) < 1e-9).mean())

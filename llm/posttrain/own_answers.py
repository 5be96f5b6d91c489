# SPDX-License-Identifier: Apache-2.0
"""Distillation on policy: training batches of the student's own answers (arXiv:2306.13649).

In a share of the batches (λ) the student answers and learns what the teacher would have said
there; the others hold the answers of the data. A batch is a function of the seed, its step and the
parameters at that step, so that a run goes on from any checkpoint with the same batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from llm.core import config as configs
from llm.core import shards
from llm.data import examples, prepare
from llm.data.rows import pad_batch
from llm.errors import ConfigError, DataError
from llm.posttrain import answering
from llm.posttrain.prompts import Task, Tasks
from llm.train.objective import Objective

FIELDS = ("tokens", "targets", "segments", "positions", "weights")


class Settings(NamedTuple):
    """The answers section of a config.

    Attributes:
        share: of the batches whose answers are the student's own (λ), 0 to 1.
        max_tokens: of an answer.
        temperature, top_k, top_p: of sampling.
        rows: answers that are drawn together.
    """

    share: float = 1.0
    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    rows: int = 64


def check(section: Mapping[str, Any]) -> Settings:
    """Bind the section.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    s = Settings(**configs.bind(Settings, section, "answers"))
    if not 0 <= s.share <= 1 or s.max_tokens < 1 or s.temperature < 0:
        raise ConfigError(
            f"config.answers has share={s.share}, max_tokens={s.max_tokens}, "
            f"temperature={s.temperature}.",
            "Use a share from 0 to 1, 1 token or more, and no negative temperature.",
        )
    return s


class OwnAnswers:
    """Training batches, partly answered by the student.

    Args:
        settings: see `check`.
        tasks: what is asked, with the data's answers where share is below 1.
        start: the student as the run starts, with its tokenizer.
        model: the student, whose parameters come with every call.
        batch_size: rows of a batch.
        length: tokens of a row: prompt and answer.
        seed: of prompts, answers, and whose they are.
        share: (index, count): which slice of every batch this process reads. Each process answers
            for its own, with a copy of the parameters on its first device.

    Raises:
        DataError: no prompt leaves room for an answer, or the data's answers are missing.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Tasks,
        start: Any,
        model: Any,
        *,
        batch_size: int,
        length: int,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ):
        self.settings, self.start, self.share = settings, start, share
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.tasks = answering.fitting(tasks.items, start, length - settings.max_tokens)
        if settings.share < 1:
            self.tasks = [task for task in self.tasks if self._fits(task)]
        if not self.tasks:
            raise DataError(
                f"No answer of the data ends within {length} tokens.", "Raise config.data.length."
            )
        self.sampler = answering.Sampler(
            start.tokenizer, model, min(settings.rows, batch_size), settings.max_tokens
        )
        self._fingerprint = tasks.fingerprint
        self._measured: list[dict[str, float]] = []

    def batch(self, step: int, params: Any = None) -> dict[str, np.ndarray]:
        """Return the rows of a step."""
        index, count = self.share
        local = self.batch_size // count
        mine = slice(index * local, (index + 1) * local)
        tasks = answering.draw(self.tasks, step, self.batch_size, self.seed)[mine]
        rng = np.random.default_rng([self.seed, step])
        own = rng.random() < self.settings.share
        seeds = rng.integers(2**32, size=self.batch_size).tolist()[mine]
        if own:
            rows = self.answered(shards.own_copy(params), tasks, seeds)
        else:
            rows = self._from_data(tasks)
        weight = rows["weights"].sum(axis=1)
        self._measured.append({"own": float(own), "length": float(weight.mean())})
        return rows

    def answered(
        self, params: Any, tasks: Sequence[Task], seeds: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Return rows with answers that the student draws."""
        s = self.settings
        with shards.alone():
            answers = self.sampler.answer(
                params, tasks, seeds, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p
            )
        rows = answering.to_rows([task.ids for task in tasks], answers, self.length)
        return {name: rows[name] for name in FIELDS}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON."""
        return {"tasks": self._fingerprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Raises:
            DataError: it asked other questions.
        """
        answering.require_same_tasks(state, self._fingerprint)

    def metrics(self) -> dict[str, float]:
        """Return means over the batches since the last call; {} if there were none."""
        rows, self._measured = self._measured, []
        keys = dict.fromkeys(key for row in rows for key in row)
        return {f"answers/{key}": float(np.mean([row[key] for row in rows])) for key in keys}

    def _from_data(self, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
        made = [prepare.alone([self._example(task)], [""], self.length) for task in tasks]
        return {name: np.stack([row[name] for row in made]) for name in FIELDS}

    def _example(self, task: Task) -> dict[str, np.ndarray]:
        if not isinstance(task.prompt, list) or not isinstance(task.answer, str):
            raise DataError(
                "config.answers.share is below 1, but a task is no chat with an answer.",
                "Give every task an answer and leave config.data.chat on, or set the share to 1.",
            )
        whole = [*task.prompt, {"role": "assistant", "content": task.answer}]
        return examples.answer_example(task.prompt, whole, self.start.tokenizer)

    def _fits(self, task: Task) -> bool:
        return len(self._example(task)["tokens"]) <= self.length


class HeldOut:
    """Held-out questions: the divergence where the student's own answers lead.

    Args:
        answers: of the same run; its sampler answers.
        tasks: what is asked.
        objective: whose divergence from the teacher is measured.
    """

    def __init__(self, answers: OwnAnswers, tasks: Tasks, objective: Objective):
        room = answers.length - answers.settings.max_tokens
        self.answers, self.objective = answers, objective
        self.tasks = answering.fitting(tasks.items, answers.start, room)
        self._sums = jax.jit(
            lambda params, given, batch: objective.loss(params, given, batch, None)
        )

    def measure(self, params: Any, count: int = 0) -> dict[str, float]:
        """Return means over the tokens of answers to the first `count` questions; 0 for all."""
        tasks = self.tasks[:count] if count else self.tasks
        size, total = self.answers.batch_size, np.zeros(2)
        params = shards.own_copy(params)
        for first in range(0, len(tasks), size):
            some = tasks[first : first + size]
            rows = self.answers.answered(params, some, range(first, first + len(some)))
            with shards.alone():
                sums = self._sums(params, self.objective.given, pad_batch(rows, size))
            total += [float(x) for x in sums["divergence"]]
        return {"divergence": total[0] / max(total[1], 1), "length": total[1] / len(tasks)}

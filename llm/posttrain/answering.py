# SPDX-License-Identifier: Apache-2.0
"""How a policy answers and is scored: the shared engine with changing parameters, fixed shapes."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llm.data import permutation
from llm.errors import DataError
from llm.generate.buckets import count_program
from llm.generate.engine import Engine, Options
from llm.generate.language_model import LanguageModel
from llm.generate.requests import Completion, Request
from llm.generate.sampling import Settings
from llm.posttrain.policy import token_scores
from llm.posttrain.prompts import Task
from llm.posttrain.rewards import Sample


class Sampler:
    """Answers tasks with whatever parameters the policy has.

    Args:
        tokenizer: of the policy.
        model: the policy.
        rows: answers that are drawn together.
        max_tokens: of an answer.
    """

    def __init__(self, tokenizer: Any, model: Any, rows: int, max_tokens: int):
        self._tokenizer, self._model, self._max_tokens = tokenizer, model, max_tokens
        self._options = Options(rows=rows, whole=True, guess=False, steady=True)
        self._engine: Engine | None = None

    def answer(
        self,
        params: Any,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        *,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[Completion]:
        """Return an answer to each task: a function of the task, its seed and the parameters."""
        if self._engine is None:
            self._engine = Engine(self._model, params, self._tokenizer, None, self._options)
            self._engine.warm_up()
        else:
            self._engine.set_params(params)
        drawn = Settings(temperature, top_k, top_p)
        stops = self._tokenizer.stop_ids
        requests = [
            Request(task.ids, self._max_tokens, drawn._replace(seed=seed), stops)
            for task, seed in zip(tasks, seeds, strict=True)
        ]
        return self._engine.complete(requests)


class Scorer:
    """Scores rows with one program, a batch at a time; see `policy.token_scores`.

    Args:
        model: a Transformer.
        batch_size: rows at a time; must divide what is scored.
        chunk: positions whose logits exist at once; 0 for all.
    """

    def __init__(self, model: Any, batch_size: int, chunk: int):
        self._model, self._batch_size, self._chunk = model, batch_size, chunk

    def __call__(self, params: Any, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return float32 [B, T] arrays."""
        names = ("tokens", "targets", "segments", "positions", "temperature")
        parts = []
        for first in range(0, len(rows["tokens"]), self._batch_size):
            part = {name: rows[name][first : first + self._batch_size] for name in names}
            parts.append(jax.device_get(_score(self._model, params, part, self._chunk)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def _score(model: Any, params: Any, rows: dict[str, jax.Array], chunk: int) -> Any:
    count_program("rollout_scores")
    return token_scores(model, params, rows, chunk=chunk)


def fitting(tasks: Sequence[Task], start: LanguageModel, room: int) -> list[Task]:
    """Return the tasks with their ids, of those whose prompts have at most `room` tokens.

    Raises:
        DataError: there are none.
    """
    read = [task._replace(ids=tuple(start.encode_prompt(task.prompt))) for task in tasks]
    kept = [task for task in read if 0 < len(task.ids) <= room]
    if not kept:
        raise DataError(
            f"None of {len(tasks)} prompts has {room} tokens or less.",
            "Raise config.data.length, lower config.rollout.max_tokens, or check the prompts.",
        )
    return kept


def require_same_tasks(state: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse a checkpoint that asked other questions.

    Raises:
        DataError: it did.
    """
    if state.get("tasks", fingerprint) != fingerprint:
        raise DataError(
            "The prompts changed since the checkpoint.",
            "Restore them, or choose another --workdir.",
        )


def draw(tasks: Sequence[Task], number: int, count: int, seed: int) -> list[Task]:
    """Return the tasks of one draw of several: every one once before any comes again."""
    size = len(tasks)
    places = np.arange(number * count, (number + 1) * count)
    epochs, order = places // size, np.empty(count, np.int64)
    for epoch in np.unique(epochs).tolist():
        mine = epochs == epoch
        key = permutation.key("prompts", seed, epoch)
        order[mine] = permutation.permute(places[mine] % size, size, key)
    return [tasks[index] for index in order.tolist()]


def samples(tasks: Sequence[Task], answers: Sequence[Completion]) -> list[Sample]:
    """Return what rewards judge."""
    return [
        Sample(task.prompt, task.answer, a.text, len(a.tokens), a.reason == "stop")
        for task, a in zip(tasks, answers, strict=True)
    ]


def to_rows(
    prompts: Sequence[Sequence[int]], answers: Sequence[Completion], length: int
) -> dict[str, np.ndarray]:
    """Lay prompts and answers into rows [B, T].

    Weights are 1 where the target is a token of the answer. The answer's last token is an input
    too, without a target: there the value after the end is read. `sampler_logps` are those that
    the sampler reported.
    """
    B = len(prompts)
    rows = {
        name: np.zeros((B, length), np.int32)
        for name in ("tokens", "targets", "segments", "positions")
    }
    rows["weights"] = np.zeros((B, length), np.float32)
    rows["sampler_logps"] = np.zeros((B, length), np.float32)
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        stream, first = [*prompt, *answer.tokens], len(prompt) - 1
        n, last = len(stream), len(stream) - 1
        rows["tokens"][b, :n] = stream
        rows["targets"][b, :last] = stream[1:]
        rows["segments"][b, :n] = 1
        rows["positions"][b, :n] = np.arange(n)
        rows["weights"][b, first:last] = 1
        rows["sampler_logps"][b, first:last] = answer.logprobs
    return rows

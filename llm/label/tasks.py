# SPDX-License-Identifier: Apache-2.0
"""What is labelled: a prompt with two to four answers, and the order an annotator sees them in."""

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llm import files
from llm.data import sources
from llm.errors import DataError
from llm.text.lines import read_lines

MOST = 4  # answers side by side

Message = dict[str, str]


class Task(NamedTuple):
    """Answers to compare.

    Attributes:
        id: hash of prompt and answers.
        prompt: a text, or the messages of a chat.
        answers: their texts, two to four.
        models: who wrote each answer, "" where the file does not say.
        source: {"file", "hash"} of where it was read.
    """

    id: str
    prompt: str | list[Message]
    answers: tuple[str, ...]
    models: tuple[str, ...]
    source: dict[str, str]


def from_record(record: Mapping[str, Any], source: Mapping[str, str], where: str) -> Task:
    """Make a task of {"prompt", "answers": [text or {"text", "model"}]} or of a preference pair.

    Raises:
        DataError: something is missing, of a wrong type, or there are not two to four answers.
    """
    prompt, answers = record.get("prompt"), record.get("answers")
    if answers is None and {"chosen", "rejected"} <= set(record):
        answers = [_spoken(record["chosen"]), _spoken(record["rejected"])]
    chat = isinstance(prompt, list) and prompt and all(map(_is_message, prompt))
    if not (chat or (isinstance(prompt, str) and prompt)) or not isinstance(answers, list):
        raise DataError(
            f"{where} is neither prompt with answers nor a preference pair.",
            'Write {"prompt": text or messages, "answers": ["…", "…"]} a line.',
        )
    texts: list[Any] = [one.get("text") if isinstance(one, Mapping) else one for one in answers]
    if not 2 <= len(texts) <= MOST or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{where} has {len(texts)} answers.", f"Give two to {MOST}, each of them a text."
        )
    models = [str(one.get("model", "")) if isinstance(one, Mapping) else "" for one in answers]
    texts, models = [_whole(text) for text in texts], [_whole(model) for model in models]
    plain: str | list[Message]
    if isinstance(prompt, list):
        plain = [{key: _whole(str(turn[key])) for key in ("role", "content")} for turn in prompt]
    else:
        plain = _whole(str(prompt))
    name = files.hash_json([plain, texts])
    return Task(name, plain, tuple(texts), tuple(models), dict(source))


def _whole(text: str) -> str:
    """Return text that UTF-8 can hold: half characters (lone surrogates) become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and {"role", "content"} <= set(value)


def _spoken(side: Any) -> Any:
    """Return an answer's text where it is a list of one message."""
    if isinstance(side, list) and len(side) == 1 and _is_message(side[0]):
        return side[0]["content"]
    return side


def read(path: str) -> list[Task]:
    """Read the tasks of a JSONL file (.gz, .zst), each once.

    Raises:
        DataError: the file is missing or empty, or a record is no task.
    """
    source = {"file": os.path.basename(path), "hash": sources.fingerprint(path)}
    found: dict[str, Task] = {}
    for number, record in enumerate(sources.read(path), 1):
        task = from_record(record, source, f"{path}, record {number}")
        found.setdefault(task.id, task)
    if not found:
        raise DataError(f"{path} holds no task.", "Write one JSON object a line.")
    return list(found.values())


def keep(folder: str, new: Iterable[Task]) -> list[Task]:
    """Add tasks to those of a folder, so that labels stay readable without their first file."""
    place = files.path(folder) / "tasks.jsonl"
    known: dict[str, Task] = {}
    if place.exists():
        for _, line, problem in read_lines(place):
            if problem:
                raise DataError(f"{place}: {problem}.", "Restore the file.")
            fields = files.parse_json(line.decode("utf-8"))
            answers, models = tuple(fields.pop("answers")), tuple(fields.pop("models"))
            known[fields["id"]] = Task(answers=answers, models=models, **fields)
    added = [task for task in new if task.id not in known]
    if added:
        known |= {task.id: task for task in added}
        lines = [json.dumps(t._asdict(), ensure_ascii=False) + "\n" for t in known.values()]
        files.write_atomic(place, "".join(lines))
    return list(known.values())


def order(task: Task, annotator: str, seed: int) -> tuple[int, ...]:
    """Return which answer stands at each place for an annotator: the same whenever it is asked."""
    places = list(range(len(task.answers)))
    random.Random(files.hash_json([seed, annotator, task.id])).shuffle(places)
    return tuple(places)


def queue(tasks: Sequence[Task], annotator: str, seed: int) -> list[Task]:
    """Return an annotator's tasks in an order of their own, so that early stops leave no gap."""
    return sorted(tasks, key=lambda task: files.hash_json([seed, annotator, "queue", task.id]))

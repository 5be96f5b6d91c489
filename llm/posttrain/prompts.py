# SPDX-License-Identifier: Apache-2.0
"""What a policy is asked while it learns: prompts with what a verifier may need of them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from llm import files
from llm.errors import DataError
from llm.posttrain import puzzles as makers
from llm.posttrain import questions
from llm.posttrain.rows import part
from llm.text.records import read_documents


class Task(NamedTuple):
    """A question: a text or messages, the expected answer or None, and what the model reads."""

    prompt: Any
    answer: Any
    ids: tuple[int, ...] = ()


class Tasks(NamedTuple):
    """Questions, and a hash of them."""

    items: list[Task]
    fingerprint: str


Splits = dict[str, Tasks]


def gather(records: Iterable[Mapping[str, Any]], chat: bool) -> Tasks:
    """Return the tasks of {"prompt", "answer"?} records.

    Args:
        records: prompts are texts or lists of messages.
        chat: ask texts as a user's message.

    Raises:
        DataError: a record has no prompt.
    """
    items = []
    for number, record in enumerate(records):
        prompt = record.get("prompt")
        if not prompt or not isinstance(prompt, str | list):
            raise DataError(f"Task {number} has no prompt.", 'Write {"prompt": …, "answer": …}.')
        if chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        items.append(Task(prompt, record.get("answer")))
    return Tasks(items, files.hash_json([[task.prompt, task.answer] for task in items]))


def tasks(*, path: str, chat: bool = True, validation: float = 0.1) -> Splits:
    """Read {"prompt", "answer"?} records of a JSONL file; the split is by a hash of each record."""
    names = ("train", "validation") if validation else ("train",)
    return {name: gather(part(path, name, validation), chat) for name in names}


def puzzles(
    *, kind: str = "largest", count: int = 4000, size: int = 4, held_out: int = 256, seed: int = 0
) -> Splits:
    """Make tasks with known answers; see `llm.posttrain.puzzles`. None is in both splits."""
    made = makers.make(kind, count=count + held_out, size=size, seed=seed)
    return {
        "train": gather(made[held_out:], True),
        "validation": gather(made[:held_out], True),
    }


def functions(*, path: str, limit: int = 0, seed: int = 0) -> Splits:
    """Ask what documented functions do; the expected answer is the summary. Splits: the corpus'."""
    given = files.path(path)
    corpus = str(given / "documents" if (given / "documents").is_dir() else given)
    made = {}
    for split in ("train", "validation"):
        chats = questions.chats(read_documents(corpus, split), seed=seed, limit=limit)
        records = [
            {"prompt": [chat["messages"][0]], "answer": chat["messages"][1]["content"]}
            for chat in chats
        ]
        made[split] = gather(records, True)
    return made

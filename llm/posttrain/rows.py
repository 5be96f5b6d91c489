# SPDX-License-Identifier: Apache-2.0
"""Where post-training rows come from: chats, preference pairs, or questions about functions."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llm import files
from llm.data import prepare, sources
from llm.data.rows import RowDataset, open_rows
from llm.posttrain import formats, puzzles, questions
from llm.text.records import read_documents

Splits = dict[str, RowDataset]


def _hold_out(records: str, folder: str, validation: float, format: str, make: Any) -> Splits:
    """Write train and validation rows of the records; the split is by a hash of each prompt."""
    made = {}
    for split in ("train", "validation") if validation else ("train",):
        target = str(files.path(folder) / split)
        source = f"{sources.fingerprint(records)}/{split}/{validation}/{format}"
        make(part(records, split, validation, format), target, source)
        made[split] = open_rows(target)
    return made


def _maker(
    prepare_rows: Callable[..., Any], tokenizer: Any, length: int, too_long: str
) -> Callable[[Iterable[dict], str, str], None]:
    """Return what writes the rows of (records, target folder, hash of their source)."""

    def make(records: Iterable[dict], target: str, source: str) -> None:
        prepare_rows(records, tokenizer, length, target, too_long=too_long, source_hash=source)

    return make


def part(path: str, split: str, validation: float, format: str = "ours") -> Iterator[dict]:
    """Yield the records of one split: which one a record is in is a hash of its prompt."""
    for record in formats.convert(sources.read(path), format):
        whole = json.dumps(prompt_of(record), sort_keys=True).encode("utf-8")
        place = int(files.hash_bytes(whole)[:8], 16) / 2**32
        if (place < validation) == (split == "validation"):
            yield record


def prompt_of(record: dict) -> Any:
    """Return what records of one prompt share: the prompt, or where both answers begin alike.

    Other records are alone: they are returned whole.
    """
    if record.get("prompt"):
        return record["prompt"]
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        pairs = zip(chosen, rejected, strict=False)
        both = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return [message for message, _ in both]
    return record


def chats(
    tokenizer: Any,
    folder: str,
    *,
    path: str,
    length: int,
    validation: float = 0.05,
    too_long: str = "drop",
    format: str = "auto",
) -> Splits:
    """Pack {"messages"} records; only what the assistant says is learned.

    Args:
        tokenizer: gives the ids; its template renders the chats.
        folder: of the rows.
        path: JSONL file.
        length: tokens per row.
        validation: share held out, by a hash of each record.
        too_long: "drop" or "truncate" what has more tokens than a row.
        format: one of `formats.FORMATS`, or "auto".
    """
    make = _maker(prepare.prepare_chats, tokenizer, length, too_long)
    return _hold_out(path, folder, validation, format, make)


def preferences(
    tokenizer: Any,
    folder: str,
    *,
    path: str,
    length: int,
    validation: float = 0.05,
    too_long: str = "drop",
    format: str = "auto",
) -> Splits:
    """Write {"prompt", "chosen", "rejected"} records, one pair per row; arguments as for `chats`.

    No prompt is in both splits.
    """
    make = _maker(prepare.prepare_preferences, tokenizer, length, too_long)
    return _hold_out(path, folder, validation, format, make)


def answers(
    tokenizer: Any,
    folder: str,
    *,
    path: str,
    length: int,
    validation: float = 0.05,
    too_long: str = "drop",
    format: str = "auto",
) -> Splits:
    """Write {"prompt", "completion", "label"} records, or preferences as two answers each (KTO)."""
    make = _maker(prepare.prepare_answers, tokenizer, length, too_long)
    return _hold_out(path, folder, validation, format, make)


def function_questions(
    tokenizer: Any, folder: str, *, path: str, length: int, limit: int = 0, seed: int = 0
) -> Splits:
    """Pack chats that ask what a documented function does; splits are those of the corpus."""
    return _from_corpus(
        "chats",
        tokenizer,
        folder,
        path,
        length,
        lambda d: questions.chats(d, seed=seed, limit=limit),
    )


def function_preferences(
    tokenizer: Any, folder: str, *, path: str, length: int, limit: int = 0, seed: int = 0
) -> Splits:
    """Write pairs of a function's summary and another's; splits are those of the corpus."""
    return _from_corpus(
        "preferences",
        tokenizer,
        folder,
        path,
        length,
        lambda d: questions.preferences(d, seed=seed, limit=limit),
    )


def puzzle_chats(
    tokenizer: Any,
    folder: str,
    *,
    length: int,
    kind: str = "largest",
    count: int = 4000,
    size: int = 4,
    held_out: int = 256,
    wrong: float = 0.0,
    seed: int = 0,
) -> Splits:
    """Pack chats of small tasks, a share of them with wrong answers; see `puzzles`."""
    return _from_puzzles(
        folder,
        puzzles.make(kind, count=count + held_out, size=size, seed=seed),
        held_out,
        lambda records: puzzles.chats(records, wrong=wrong, seed=seed),
        _maker(prepare.prepare_chats, tokenizer, length, "drop"),
    )


def puzzle_preferences(
    tokenizer: Any,
    folder: str,
    *,
    length: int,
    kind: str = "largest",
    count: int = 4000,
    size: int = 4,
    held_out: int = 256,
    seed: int = 0,
) -> Splits:
    """Write pairs of a right and a wrong answer to small tasks; see `puzzles`."""
    return _from_puzzles(
        folder,
        puzzles.make(kind, count=count + held_out, size=size, seed=seed),
        held_out,
        lambda records: puzzles.preferences(records, seed=seed),
        _maker(prepare.prepare_preferences, tokenizer, length, "drop"),
    )


def _from_puzzles(
    folder: str,
    records: list[dict[str, str]],
    held_out: int,
    build: Callable[[list[dict[str, str]]], list[dict]],
    make: Callable[[Iterable[dict], str, str], None],
) -> Splits:
    """Write the rows of puzzles; the first are held out."""
    made = {}
    for split, mine in (("train", records[held_out:]), ("validation", records[:held_out])):
        built = build(mine)
        target = str(files.path(folder) / split)
        make(built, target, files.hash_json(built))
        made[split] = open_rows(target)
    return made


def function_answers(
    tokenizer: Any, folder: str, *, path: str, length: int, limit: int = 0, seed: int = 0
) -> Splits:
    """Write a function's summary as a good answer and another's as a bad one."""
    return _from_corpus(
        "answers",
        tokenizer,
        folder,
        path,
        length,
        lambda d: questions.preferences(d, seed=seed, limit=limit),
    )


def _from_corpus(
    kind: str,
    tokenizer: Any,
    folder: str,
    path: str,
    length: int,
    build: Callable[[Iterable[dict]], Iterator[dict]],
) -> Splits:
    """Build records of every split, keep them as JSONL to look at, and pack them."""
    given = files.path(path)
    corpus = str(given / "documents" if (given / "documents").is_dir() else given)
    made = {}
    for split in ("train", "validation"):
        lines = [json.dumps(r, ensure_ascii=False) for r in build(read_documents(corpus, split))]
        written = files.path(folder) / f"{split}.jsonl"
        files.write_atomic(written, "\n".join(lines) + "\n")
        target = files.path(folder) / split
        prepare.PREPARE[kind](str(written), tokenizer, length, str(target))
        made[split] = open_rows(target)
    return made

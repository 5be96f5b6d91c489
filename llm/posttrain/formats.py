# SPDX-License-Identifier: Apache-2.0
"""Records as others publish them, turned into chats and preference pairs. No JAX.

Ours are {"messages": [{"role", "content"}]} and {"prompt", "chosen", "rejected"}.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llm.errors import DataError, unknown

Record = dict[str, Any]
Format = Callable[[Record], Iterable[Record]]

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _chat(question: str, answer: str, system: str = "") -> Record:
    before = [{"role": "system", "content": system}] if system else []
    turns = [("user", question), ("assistant", answer)]
    return {"messages": before + [{"role": r, "content": c} for r, c in turns]}


def _joined(question: str, context: Any) -> str:
    return f"{question}\n\n{context}" if context else question


def _alpaca(record: Record) -> Iterator[Record]:
    """Read {"instruction", "input", "output"}, or the seed tasks' "instances" of the last two."""
    for one in record.get("instances", [record]):
        yield _chat(_joined(record["instruction"], one.get("input")), one["output"])


def _dolly(record: Record) -> Iterator[Record]:
    """Read {"instruction", "context", "response"}."""
    yield _chat(_joined(record["instruction"], record.get("context")), record["response"])


def _prompt_response(record: Record) -> Iterator[Record]:
    """Read {"prompt", "response"}; the frame of Alpaca's prompts is taken off."""
    framed = re.fullmatch(
        r"Below is an instruction.*?### Instruction:\n(.*?)\n*### Response:\n*",
        record["prompt"],
        re.S,
    )
    yield _chat(framed[1] if framed else record["prompt"], record["response"])


def _question_answer(record: Record) -> Iterator[Record]:
    """Read {"question", "answer"} (GSM8K)."""
    yield _chat(record["question"], record["answer"])


def _inputs_targets(record: Record) -> Iterator[Record]:
    """Read {"inputs", "targets"}, as SeqIO's tasks of text to text have them."""
    yield _chat(record["inputs"], record["targets"])


def _sharegpt(record: Record) -> Iterator[Record]:
    """Read {"conversations": [{"from", "value"}]}."""
    turns = record["conversations"]
    yield {
        "messages": [
            {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
            for turn in turns
        ]
    }


def dialogue(text: str) -> list[dict[str, str]]:
    """Return the messages of "\\n\\nHuman: …\\n\\nAssistant: …"."""
    pieces = _TURN.split(text)
    return [
        {"role": "user" if who == "Human" else "assistant", "content": words.strip()}
        for who, words in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _hh(record: Record) -> Iterator[Record]:
    """Read {"chosen", "rejected"} dialogues (Bai et al., 2022) that differ in the last answer.

    Pairs that part earlier, that are equal, or whose answer is empty are left out: no prompt is
    common to them, or there is nothing to compare.
    """
    chosen, rejected = dialogue(record["chosen"]), dialogue(record["rejected"])
    fits = len(chosen) >= 2 and chosen[:-1] == rejected[:-1] and chosen != rejected
    ends = fits and all(
        side[-1]["role"] == "assistant" and all(turn["content"] for turn in side)
        for side in (chosen, rejected)
    )
    if ends:
        prompt = chosen[:-1]
        yield {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _same(record: Record) -> Iterator[Record]:
    yield record


# config.data.format: record -> records of ours
FORMATS: dict[str, Format] = {
    "ours": _same,
    "openai": _same,
    "alpaca": _alpaca,
    "dolly": _dolly,
    "prompt_response": _prompt_response,
    "question_answer": _question_answer,
    "inputs_targets": _inputs_targets,
    "sharegpt": _sharegpt,
    "hh": _hh,
}

# What tells a format: keys that its records have.
_SIGNS = (
    ("openai", {"messages"}),
    ("sharegpt", {"conversations"}),
    ("alpaca", {"instruction", "output"}),
    ("alpaca", {"instruction", "instances"}),
    ("dolly", {"instruction", "response"}),
    ("prompt_response", {"prompt", "response"}),
    ("question_answer", {"question", "answer"}),
    ("inputs_targets", {"inputs", "targets"}),
)


def guess(record: Record) -> str:
    """Return the format of a record by its keys; "ours" where none other fits."""
    for name, keys in _SIGNS:
        if keys <= set(record):
            return name
    sides = (record.get("chosen"), record.get("rejected"))
    if all(isinstance(side, str) and _TURN.match(side) for side in sides):
        return "hh"
    return "ours"


def convert(records: Iterable[Record], name: str = "auto") -> Iterator[Record]:
    """Yield records of ours.

    Args:
        records: of one format.
        name: of `FORMATS`, or "auto": by the keys of each record.

    Raises:
        ConfigError: the format is unknown.
        DataError: a record lacks what its format has.
    """
    if name != "auto" and name not in FORMATS:
        raise unknown("data.format", name, ("auto", *FORMATS))
    for number, record in enumerate(records):
        kind = guess(record) if name == "auto" else name
        try:
            yield from FORMATS[kind](record)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"Record {number} is not of the format {kind!r}: {error!r:.80}.",
                f"Set config.data.format to one of: {', '.join(FORMATS)}.",
            ) from error

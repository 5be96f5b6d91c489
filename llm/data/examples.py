# SPDX-License-Identifier: Apache-2.0
"""From documents, chats and preferences to examples: 1-D tokens, targets and weights."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llm.data import packing
from llm.errors import DataError
from llm.tokenizers.base import Tokenizer

BATCH_TEXTS = 1024  # texts tokenised together, at most
BATCH_CHARACTERS = 1 << 21


def document_examples(
    documents: Iterable[dict[str, Any]], tokenizer: Tokenizer, counter: Counter[str]
) -> Iterator[packing.Row]:
    """Yield one example per document, counting documents and bytes of text."""
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    texts = (_text_of(record, counter) for record in documents)
    for batch in _batches(text for text in texts if text):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            counter["examples"] += 1
            counter["bytes_of_text"] += size_of(text)
            yield document_example(ids, start, tokenizer.eos_id)


def document_example(ids: Sequence[int], start: int, end: int) -> packing.Row:
    """Return the example of one document: the start token, its ids, and the end as last target."""
    stream = np.empty(len(ids) + 2, np.int32)
    stream[0], stream[1:-1], stream[-1] = start, ids, end
    return {
        "tokens": stream[:-1],
        "targets": stream[1:],
        "weights": np.ones(len(ids) + 1, np.float32),
    }


def chat_example(
    record: dict[str, Any],
    tokenizer: Tokenizer,
    assistant_only: bool = True,
    name: str = "chat",
) -> packing.Row:
    """Return the example of one chat.

    Args:
        record: has "messages".
        assistant_only: weigh only what the assistant says; False weighs every token.
        name: what an error calls the record.

    Raises:
        DataError: the messages are malformed, or the template refuses them.
    """
    ids, weights = tokenizer.encode_chat(check_messages(record.get("messages"), name))
    return _shifted(ids, weights if assistant_only else [1.0] * len(ids))


def pairs_of(record: dict[str, Any], name: str = "preference") -> Iterator[dict[str, Any]]:
    """Yield a record's pairs: itself, or of a "ranking" (best first) every better with every worse.

    Raises:
        DataError: the ranking has fewer than two answers.
    """
    ranking = record.get("ranking")
    if ranking is None:
        yield record
        return
    if not isinstance(ranking, list | tuple) or len(ranking) < 2:
        raise DataError(f"{name} ranks fewer than two answers.", "List the answers, best first.")
    for chosen, rejected in itertools.combinations(ranking, 2):
        yield {"prompt": record.get("prompt"), "chosen": chosen, "rejected": rejected}


def preference_examples(
    record: dict[str, Any], tokenizer: Tokenizer, name: str = "preference"
) -> list[packing.Row]:
    """Return the chosen and the rejected example; only the answer after the prompt has weight.

    Raises:
        DataError: the record is malformed, or the template refuses it.
    """
    prompt = _messages(record.get("prompt") or [], "user")
    sides = {}
    for side in ("chosen", "rejected"):
        if not record.get(side):
            raise DataError(f"{name} has no {side!r}.", "Give prompt, chosen and rejected.")
        sides[side] = check_messages(prompt + _messages(record[side], "assistant"), name)
    if not prompt:
        pairs = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(*sides.values(), strict=False)
        )
        prompt = [message for message, _ in pairs]
    return [answer_example(prompt, messages, tokenizer) for messages in sides.values()]


def single_answers(
    records: Iterable[dict[str, Any]],
) -> list[tuple[list[Any], list[dict[str, Any]], int]]:
    """Return (prompt, whole chat, 1 if the answer is desirable) of answers with a label.

    Records are {"prompt", "completion", "label"}, or preferences and rankings, each of whose pairs
    is a desirable and an undesirable answer. All desirable ones come first, so that neighbours have
    different prompts.

    Raises:
        DataError: a record is malformed.
    """
    found: tuple[list, list] = ([], [])
    for number, record in enumerate(records):
        name = f"answer {number}"
        if "completion" not in record:
            for pair in pairs_of(record, name):
                for side, label in (("chosen", 1), ("rejected", 0)):
                    one = {"prompt": pair.get("prompt"), "completion": pair.get(side)}
                    found[1 - label].append((*_answered(one, name), label))
            continue
        if not isinstance(record.get("label"), bool):
            raise DataError(
                f"{name} has no label that is true or false.",
                'Write {"prompt": …, "completion": …, "label": true}.',
            )
        found[1 - record["label"]].append((*_answered(record, name), int(record["label"])))
    return found[0] + found[1]


def _answered(record: dict[str, Any], name: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the messages of a prompt, and those with its completion."""
    prompt = _messages(record.get("prompt") or [], "user")
    if not prompt or not record.get("completion"):
        raise DataError(f"{name} has no prompt and answer.", "Give both, as strings or messages.")
    return prompt, check_messages(prompt + _messages(record["completion"], "assistant"), name)


def number_of(record: dict[str, Any], key: str, name: str) -> float:
    """Return a number of a record; 0 where it has none.

    Raises:
        DataError: something else stands there.
    """
    value = record.get(key, 0.0)
    if not isinstance(value, int | float) or not abs(value) < 1e30:
        raise DataError(f"{name} has a {key} that is no number: {value!r:.40}.", "Correct it.")
    return float(value)


def answer_example(
    prompt: Sequence[dict[str, Any]], messages: Sequence[dict[str, Any]], tokenizer: Tokenizer
) -> packing.Row:
    """Return a chat as the example of what comes after its prompt.

    All its tokens up to the stop token are there, so that a reward model can read the whole; what
    a template adds after the stop is not. The last target is blank.
    """
    known = len(tokenizer.encode_chat(prompt, True)[0]) if prompt else 0
    ids, weights = tokenizer.encode_answer(messages)
    weights = [0.0] * min(known, len(ids)) + weights[known:]
    return _shifted([*ids, 0], [*weights, 0.0])


def check_messages(messages: Any, name: str) -> list[dict[str, Any]]:
    """Return messages as a list of dicts with string "role" and "content".

    Raises:
        DataError: they are not.
    """
    good = isinstance(messages, list | tuple) and all(
        isinstance(item, dict)
        and isinstance(item.get("role"), str)
        and isinstance(item.get("content"), str)
        for item in messages
    )
    if not good or not messages:
        raise DataError(
            f"{name} has no list of messages with string role and content.",
            'Write {"messages": [{"role": "user", "content": "…"}, …]}.',
        )
    return list(messages)


def _shifted(ids: Sequence[int], weights: Sequence[float]) -> packing.Row:
    stream = np.asarray(ids, np.int32)
    return {
        "tokens": stream[:-1],
        "targets": stream[1:],
        "weights": np.asarray(weights[1:], np.float32),
    }


def _messages(value: Any, role: str) -> list[Any]:
    """Take a string for one message of a role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return list(value) if isinstance(value, list | tuple) else [value]


def _text_of(record: dict[str, Any], counter: Counter[str]) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise DataError(
            f"A document ({record.get('id', 'without id')}) has no text.",
            'Each document needs a string "text".',
        )
    if not text:
        counter["empty_dropped"] += 1
    return text


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) >= BATCH_TEXTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def text_examples(
    texts: Sequence[str], tokenizer: Tokenizer, counter: Counter[str]
) -> Iterator[packing.Row]:
    """Yield one example per text without start and end: its tokens, each the target of the last."""
    for text in texts:
        ids = tokenizer.encode(text)
        counter["examples"] += 1
        # The first token is never a target.
        counter["bytes_of_text"] += size_of(text) - size_of(tokenizer.decode(ids[:1]))
        yield _shifted(ids, [1.0] * len(ids))


def size_of(text: str) -> int:
    """Return the number of UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

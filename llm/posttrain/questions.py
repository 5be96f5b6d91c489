# SPDX-License-Identifier: Apache-2.0
"""Questions about functions, built from documents: chats for SFT, pairs for preference learning."""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from llm.errors import DataError
from llm.text.functions import function_of

PROMPTS = (
    "What does `{signature}` do?",
    "Explain `{signature}` in one sentence.",
    "Summarise this function: {signature}",
)


def functions(documents: Iterable[dict]) -> list[tuple[str, str]]:
    """Return (call, summary) of every documented function, each call once.

    Raises:
        DataError: no document describes a function.
    """
    found: dict[str, str] = {}
    for document in documents:
        meta = document.get("meta", {})
        function = function_of(meta)
        described = function.signature and len(function.summary) >= 12
        if meta.get("kind") == "docstring" and described:
            found.setdefault(function.call, function.summary)
    if not found:
        raise DataError(
            "No document describes a function (meta.signature and meta.summary).",
            "Build the corpus from the pydocs source, or give chats with config.data.source=chats.",
        )
    return sorted(found.items())


def _shuffled(documents: Iterable[dict], seed: int, limit: int) -> list[tuple[str, str]]:
    pairs = functions(documents)
    random.Random(seed).shuffle(pairs)
    return pairs[:limit] if limit else pairs


def chats(documents: Iterable[dict], *, seed: int = 0, limit: int = 0) -> Iterator[dict[str, Any]]:
    """Yield {"messages"}: a question about a function, and its summary as the answer."""
    rng = random.Random(seed + 1)
    for signature, summary in _shuffled(documents, seed, limit):
        question = rng.choice(PROMPTS).format(signature=signature)
        yield {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": summary},
            ]
        }


def preferences(
    documents: Iterable[dict], *, seed: int = 0, limit: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield {"prompt", "chosen", "rejected"}: the true summary against another function's.

    The wrong answer is that of the next function in a shuffled circle, so that every summary is
    right once and wrong once: only the match with the question tells them apart.
    """
    rng = random.Random(seed + 1)
    pairs = _shuffled(documents, seed, limit)
    for (signature, summary), (_, other) in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        if other != summary:
            prompt = rng.choice(PROMPTS).format(signature=signature)
            yield {"prompt": prompt, "chosen": summary, "rejected": other}

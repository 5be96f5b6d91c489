# SPDX-License-Identifier: Apache-2.0
"""Refusals: how often a model declines what it should, and what it should not.

The requests (`llm.text.refusals`) are mild and few, and a refusal is recognised by its words: the
rates compare models and training runs, they do not certify a model as safe.
"""

from collections.abc import Sequence
from typing import Any

from llm.core import statistics
from llm.data import sources
from llm.errors import DataError
from llm.text.refusals import Request, is_refusal, requests


def evaluate(
    lm: Any, *, path: str = "", max_tokens: int = 48, batch_size: int = 64, limit: int = 0
) -> dict[str, Any]:
    """Ask harmful requests and their harmless twins, greedily.

    Args:
        lm: a language model with a chat template.
        path: JSONL of {"prompt", "harmful", "category"?}; "" for the built-in ones.
        max_tokens: of an answer: refusals say so at once.
        batch_size: asked together.
        limit: requests at most; 0 for all.

    Returns:
        Metrics refusal_rate (of harmful requests) and over_refusal_rate (of harmless ones).

    Raises:
        DataError: a record is not of that form, or there are not both kinds.
    """
    asked = _read(path) if path else list(requests("eval"))
    asked = asked[:limit] if limit else asked
    if len({request.harmful for request in asked}) < 2:
        raise DataError("Both harmful and harmless requests are needed.", "Add the other kind.")
    answers: list[str] = []
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        chats = [[{"role": "user", "content": request.text}] for request in part]
        answers += lm.generate(chats, max_tokens=max_tokens, temperature=0.0)
    return metrics(asked, answers)


def metrics(asked: Sequence[Request], answers: Sequence[str]) -> dict[str, Any]:
    """Count refusals; see `evaluate`."""
    items: list[dict[str, Any]] = [
        {
            "prompt": request.text,
            "category": request.category,
            "harmful": request.harmful,
            "output": answer,
            "refused": is_refusal(answer),
        }
        for request, answer in zip(asked, answers, strict=True)
    ]
    rates = {
        name: statistics.proportion([item["refused"] for item in items if item["harmful"] == kind])
        for name, kind in (("refusal_rate", True), ("over_refusal_rate", False))
    }
    return {"n": len(items), "metrics": rates, "items": items}


def _read(path: str) -> list[Request]:
    found = []
    for number, record in enumerate(sources.read(path), 1):
        text, harmful = record.get("prompt"), record.get("harmful")
        if not isinstance(text, str) or not isinstance(harmful, bool):
            raise DataError(
                f"{path}, line {number}: no prompt, or harmful is not true or false.",
                'Write {"prompt": "…", "harmful": true}.',
            )
        found.append(Request(str(record.get("category", "")), text, harmful))
    return found

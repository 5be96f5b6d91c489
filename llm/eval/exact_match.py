# SPDX-License-Identifier: Apache-2.0
"""Exact match: generate an answer, extract it, compare it with the one that is known."""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from llm.core import statistics
from llm.data import sources
from llm.errors import DataError

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def evaluate(
    lm: Any,
    *,
    path: str,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    template: str = "{prompt}",
    stop: Sequence[str] = ("\n",),
    max_tokens: int = 64,
    extract: str = "text",
    marker: str = "####",
    limit: int = 0,
) -> dict[str, Any]:
    """Generate greedily after each prompt and compare with the answer.

    Args:
        lm: a language model with `generate`.
        path: JSONL with a prompt and an answer a line.
        prompt_field, answer_field: their names.
        template: what the prompt is put into.
        stop: strings that end a generation.
        max_tokens: generated at most.
        extract: "text" compares normalised text; "number" compares the number after `marker`
            (strict_match) and the last number of the generation (flexible_match).
        marker: introduces the final number, also in the known answers.
        limit: prompts at most; 0 for all.
    """
    records = list(sources.read(path))
    records = records[:limit] if limit else records
    for number, record in enumerate(records, 1):
        if prompt_field not in record or answer_field not in record:
            raise DataError(
                f"{path}, line {number}: no {prompt_field!r} or no {answer_field!r}.",
                "Set prompt_field and answer_field to the file's names.",
            )
    prompts = [template.replace("{prompt}", str(record[prompt_field])) for record in records]
    answers = [str(record[answer_field]) for record in records]
    outputs = lm.generate(prompts, max_tokens=max_tokens, temperature=0.0, stop=list(stop))
    return metrics(prompts, outputs, answers, extract, marker)


def metrics(
    prompts: Sequence[str],
    outputs: Sequence[str],
    answers: Sequence[str],
    extract: str = "text",
    marker: str = "####",
) -> dict[str, Any]:
    """Compare generations with answers; see `evaluate`."""
    hits: dict[str, list[bool]] = {}
    records = []
    for prompt, output, answer in zip(prompts, outputs, answers, strict=True):
        found = _compare(output, answer, extract, marker)
        for name, hit in found.items():
            hits.setdefault(name, []).append(hit)
        records.append({"prompt": prompt, "output": output, "answer": answer, **found})
    scores: Mapping[str, Any] = {name: statistics.proportion(v) for name, v in hits.items()}
    return {"n": len(records), "metrics": dict(scores), "items": records}


def _compare(output: str, answer: str, extract: str, marker: str) -> dict[str, bool]:
    if extract == "text":
        return {"exact_match": normalise(output) == normalise(answer)}
    wanted = marked_number(answer, marker) or last_number(answer)
    strict, flexible = marked_number(output, marker), last_number(output)
    return {
        "strict_match": wanted is not None and strict == wanted,
        "flexible_match": wanted is not None and flexible == wanted,
    }


def normalise(text: str) -> str:
    """Fold case, width and spaces, and drop ASCII punctuation and a final full stop."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_PUNCTUATION).split())


def marked_number(text: str, marker: str = "####") -> str | None:
    """Return the first number that follows the marker, in plain digits."""
    match = re.search(re.escape(marker) + r"\s*(" + _NUMBER + ")", text)
    return plain_number(match.group(1)) if match else None


def last_number(text: str) -> str | None:
    """Return the last number of a text, in plain digits."""
    found = re.findall(_NUMBER, text)
    return plain_number(found[-1]) if found else None


def plain_number(text: str) -> str:
    """Write a number without currency sign, thousands separators and needless zeros."""
    digits = text.replace("$", "").replace(",", "")
    sign = "-" if digits.startswith("-") else ""
    whole, _, fraction = digits.lstrip("-").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value

# SPDX-License-Identifier: Apache-2.0
"""Questions with their options: read from JSONL, or made from the documents of a corpus."""

import gzip
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm import files
from llm.errors import DataError


class Item(NamedTuple):
    """One question: score each (context, continuation), the best should be number `gold`.

    `texts` are the options as a person sees them; their lengths normalise the scores.
    """

    pairs: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    gold: int


def read_records(source: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file (optionally .gz).

    Raises:
        DataError: the file is missing, empty, or a line is not a JSON object.
    """
    location = files.path(source)
    if not location.exists():
        raise DataError(f"{source} does not exist.", "Check the task's path.")
    data = location.read_bytes()
    if str(source).endswith(".gz"):
        data = gzip.decompress(data)
    lines = [(n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{source} is empty.", "Give a file with one JSON object a line.")
    for number, line in lines:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source}, line {number}: not JSON ({error}).", "Repair it.") from None
        if not isinstance(record, dict):
            raise DataError(f"{source}, line {number}: not a JSON object.", "Repair it.")
        yield record


def from_record(
    record: Mapping[str, Any], where: str, template: str = "{query}", delimiter: str = " "
) -> Item:
    """Make an item of a record in one of the two known forms.

    `{"query", "choices", "gold"}` scores each choice after the query;
    `{"context_options", "continuation", "gold"}` scores the one continuation after each context
    (partial scoring, as WinoGrande is scored).

    Args:
        record: the parsed line.
        where: named in errors.
        template: what the query is put into.
        delimiter: between context and continuation.

    Raises:
        DataError: fields are missing or of a wrong type, or gold names no option.
    """
    contexts, choices = record.get("context_options"), record.get("choices")
    options = contexts if contexts is not None else choices
    known = "query" in record if contexts is None else "continuation" in record
    strings = isinstance(options, list) and all(isinstance(o, str) and o for o in options)
    if not known or not strings or not options:
        raise DataError(
            f"{where}: neither query/choices/gold nor context_options/continuation/gold.",
            "Write the questions in one of these forms.",
        )
    gold = record.get("gold")
    if not isinstance(gold, int) or not 0 <= gold < len(options):
        raise DataError(f"{where}: gold={gold!r} names no option.", "gold counts from 0.")
    if contexts is not None:
        ending = str(record["continuation"])
        pairs = tuple((str(context), delimiter + ending) for context in contexts)
        return Item(pairs, (ending,) * len(pairs), gold)
    query = template.replace("{query}", str(record["query"]))
    pairs = tuple((query, delimiter + choice) for choice in options)
    return Item(pairs, tuple(options), gold)


def read_items(
    source: str, template: str = "{query}", delimiter: str = " ", limit: int = 0
) -> list[Item]:
    """Read a question file; see `from_record`."""
    records = list(read_records(source))
    records = records[:limit] if limit else records
    return [
        from_record(record, f"{source}, question {number}", template, delimiter)
        for number, record in enumerate(records, 1)
    ]


def describe_functions(
    documents: Iterable[Mapping[str, Any]], n_options: int = 4, limit: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """Ask which function a summary describes, from documents with signature and summary.

    Functions are told apart by signature and by summary: each of them is used once, and the wrong
    options come from other functions of the same documents.

    Args:
        documents: their `meta` holds "signature" and "summary" where they are docstrings.
        n_options: signatures per question.
        limit: questions at most; 0 for one per function.
        seed: of the order, the wrong options and the place of the right one.

    Returns:
        Records {"summary", "signatures", "gold"}.

    Raises:
        DataError: fewer functions than options.
    """
    functions = distinct_functions(documents)
    if len(functions) < n_options:
        raise DataError(
            f"Only {len(functions)} documents have a signature and a summary; "
            f"a question needs {n_options}.",
            "Use a corpus of docstrings, or a larger split.",
        )
    generator = random.Random(seed)
    order = list(range(len(functions)))
    generator.shuffle(order)
    questions = []
    for right in order[: limit or len(order)]:
        others = generator.sample(range(len(functions) - 1), n_options - 1)
        wrong = [other + (other >= right) for other in others]
        gold = generator.randrange(n_options)
        chosen = [*wrong[:gold], right, *wrong[gold:]]
        questions.append(
            {
                "summary": functions[right][1],
                "signatures": [functions[index][0] for index in chosen],
                "gold": gold,
            }
        )
    return questions


def distinct_functions(documents: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (signature, summary) of documents that have both, neither occurring twice."""
    signatures: set[str] = set()
    summaries: set[str] = set()
    functions = []
    for document in documents:
        meta = document.get("meta") or {}
        signature = str(meta.get("signature") or "").strip()
        summary = str(meta.get("summary") or "").strip()
        fresh = signature not in signatures and summary.lower() not in summaries
        if signature and summary and fresh:
            signatures.add(signature)
            summaries.add(summary.lower())
            functions.append((signature, summary))
    return functions


def function_items(
    questions: Sequence[Mapping[str, Any]],
    context: str,
    continuation: str,
    score: str = "summary",
) -> list[Item]:
    """Write function questions as scored pairs.

    Args:
        questions: of `describe_functions`.
        context, continuation: templates with {signature} and {summary}.
        score: "summary" writes each signature into the context and scores the one summary after
            it (a text's own order, and no option is favoured for being likely by itself);
            "signature" scores each signature after the summary.

    Raises:
        DataError: a template lacks the field that has to vary.
    """
    varied = context if score == "summary" else continuation
    if "{signature}" not in varied:
        raise DataError(
            f"The template {varied!r} lacks {{signature}}.",
            f'With score="{score}" each option is written there.',
        )
    items = []
    for question in questions:
        pairs, texts = [], []
        for signature in question["signatures"]:
            values = {"{signature}": signature, "{summary}": question["summary"]}
            pairs.append((_fill(context, values), _fill(continuation, values)))
            texts.append(signature if score == "signature" else question["summary"])
        items.append(Item(tuple(pairs), tuple(texts), int(question["gold"])))
    return items


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replace the fields at one go, so that a value's own braces stay text."""
    parts = []
    rest = template
    while rest:
        at, name = min(((rest.find(n), n) for n in values if n in rest), default=(len(rest), ""))
        parts.append(rest[:at] + values.get(name, ""))
        rest = rest[at + len(name) :]
    return "".join(parts)

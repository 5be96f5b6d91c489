# SPDX-License-Identifier: Apache-2.0
"""Questions with their options: read from JSONL, or made from the documents of a corpus."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llm.data import sources
from llm.errors import DataError
from llm.text.functions import Function, function_of


class Item(NamedTuple):
    """One question: score each (context, continuation), the best should be number `gold`.

    `texts` are the options as a person sees them; their lengths normalise the scores.
    """

    pairs: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    gold: int


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
    records = list(sources.read(source))
    records = records[:limit] if limit else records
    return [
        from_record(record, f"{source}, question {number}", template, delimiter)
        for number, record in enumerate(records, 1)
    ]


def describe_functions(
    documents: Iterable[Mapping[str, Any]], n_options: int = 4, limit: int = 0, seed: int = 0
) -> list[tuple[list[Function], int]]:
    """Ask which function a summary describes, from documents with signature and summary.

    Each function is asked about once, and the wrong options are other functions of the same
    documents.

    Args:
        documents: their `meta` holds "signature" and "summary" where they are docstrings.
        n_options: functions per question.
        limit: questions at most; 0 for one per function.
        seed: of the order, the wrong options and the place of the right one.

    Returns:
        Questions (options, number of the right one).

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
        questions.append(([functions[index] for index in chosen], gold))
    return questions


def distinct_functions(documents: Iterable[Mapping[str, Any]]) -> list[Function]:
    """Return the functions of documents, no signature, name or summary occurring twice."""
    seen: set[str] = set()
    functions = []
    for document in documents:
        found = function_of(document.get("meta") or {})
        if not found.signature or not found.summary:
            continue
        keys = {found.signature, f"name {found.name}", f"summary {found.summary.lower()}"}
        if not keys & seen:
            seen |= keys
            functions.append(found)
    return functions


def function_items(
    questions: Sequence[tuple[Sequence[Function], int]],
    context: str,
    continuation: str,
    vary: str = "context",
) -> list[Item]:
    """Write function questions as scored pairs.

    Args:
        questions: of `describe_functions`.
        context, continuation: templates with {signature}, {call}, {name} and {summary}.
        vary: "context" writes each option into the context and scores the one continuation after
            it (no option is favoured for being likely by itself); "continuation" scores each
            option after the same context.

    Raises:
        DataError: a template lacks the field that has to vary.
    """
    varied, fixed = (context, continuation) if vary == "context" else (continuation, context)
    if not any(f"{{{field}}}" in varied for field in ("signature", "call", "name")):
        raise DataError(
            f"The template {varied!r} names no function.",
            f'With vary="{vary}" write {{signature}}, {{call}} or {{name}} there.',
        )
    items = []
    for options, gold in questions:
        same = _fill(fixed, options[gold])
        texts = [_fill(varied, option) for option in options]
        pairs = [(text, same) if vary == "context" else (same, text) for text in texts]
        shown = [same] * len(texts) if vary == "context" else texts
        items.append(Item(tuple(pairs), tuple(shown), gold))
    return items


def _fill(template: str, function: Function) -> str:
    """Write a function's fields into a template; braces in the values stay text."""
    fields = function._asdict()
    return re.sub(r"\{(\w+)\}", lambda m: fields.get(m.group(1), m.group(0)), template)

# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: the option to which the model gives the highest log-likelihood."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm.core import statistics
from llm.errors import ConfigError
from llm.eval import items as questions
from llm.eval.perplexity import batches
from llm.generate import scoring


def evaluate(
    lm: Any,
    *,
    path: str,
    template: str = "{query}",
    delimiter: str = " ",
    limit: int = 0,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Score a local JSONL file of questions; the forms are those of `items.from_record`.

    Args:
        lm: a language model with `loglikelihood`.
        path: the file, .jsonl or .jsonl.gz.
        template: what the query is put into, such as "{query}\\nAnswer:".
        delimiter: between context and option.
        limit: questions to ask at most; 0 for all.
        batch_size: (context, continuation) pairs handed to the model at a time.
    """
    return score(lm, questions.read_items(path, template, delimiter, limit), batch_size)


def evaluate_functions(
    lm: Any,
    *,
    documents: str,
    split: str | None = "validation",
    n_options: int = 4,
    limit: int = 200,
    seed: int = 0,
    context: str = "{name}\n\n{signature}\n\n",
    continuation: str = "{summary}",
    vary: str = "context",
    chat: bool = False,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Ask "which function does this describe?" about documents the model was not trained on.

    Args:
        lm: a language model with `loglikelihood`.
        documents: a corpus with docstring documents.
        split: of the corpus.
        n_options: functions per question.
        limit: questions at most; 0 for all.
        seed: of the questions.
        context, continuation, vary: see `items.function_items`; write them as the model saw such
            text in training.
        chat: put the context to the model as a user's message, and the continuation as its answer.
        batch_size: pairs handed to the model at a time.
    """
    if vary not in ("context", "continuation"):
        raise ConfigError(f"vary={vary!r} is not known.", "Use context or continuation.")
    from llm.text.records import read_documents

    found = questions.describe_functions(
        read_documents(documents, split or None), n_options, limit, seed
    )
    items = questions.function_items(found, context, continuation, vary)
    result = score(lm, items, batch_size, chat)
    for record, (options, gold) in zip(result["items"], found, strict=True):
        record["question"] = options[gold].summary
        record["options"] = [option.signature for option in options]
    return result


def score(
    lm: Any, items: Sequence[questions.Item], batch_size: int = 64, chat: bool = False
) -> dict[str, Any]:
    """Score items with the model, as plain text or as answers in a chat."""
    pairs = [pair for item in items for pair in item.pairs]
    scores: list[float] = []
    for batch in batches(pairs, batch_size):
        found = answers(lm, batch) if chat else lm.loglikelihood(batch)
        scores.extend(float(one[0]) for one in found)
    return metrics(items, scores)


def answers(lm: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Score what an assistant would say, end of turn included, to each (message, answer)."""
    windows = []
    for message, answer in pairs:
        question = [{"role": "user", "content": message}]
        prompt = lm.encode_prompt(question)
        whole = lm.tokenizer.encode_chat([*question, {"role": "assistant", "content": answer}])[0]
        if whole[: len(prompt)] != prompt:
            raise ConfigError(
                "The chat template does not continue its own generation prompt.",
                "Set chat=False for this model.",
            )
        windows.append(scoring.Window(prompt, whole[len(prompt) :]))
    scored = scoring.score(lm.model, lm.params, windows, lm.mesh)
    return [(one.logprob, one.is_greedy) for one in scored]


def metrics(items: Sequence[questions.Item], loglikelihoods: Sequence[float]) -> dict[str, Any]:
    """Turn the log-likelihoods of all options, in order, into accuracies beside chance.

    acc takes the sum, acc_norm divides it by the characters of the option, acc_bytes by its UTF-8
    bytes (the delimiter not counted); both are left out where all options score one same text.
    The first of equal options wins.

    Returns:
        n, metrics with 95 % Wilson intervals, and per-item predictions.
    """
    hits: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    records, start = [], 0
    for item in items:
        end = start + len(item.pairs)
        sums = np.asarray(loglikelihoods[start:end], np.float64)
        start = end
        divisors = {
            "acc": np.ones(len(sums)),
            "acc_norm": np.array([max(1, len(text)) for text in item.texts]),
            "acc_bytes": np.array([max(1, len(text.encode("utf-8"))) for text in item.texts]),
        }
        for name, divisor in divisors.items():
            hits[name].append(int(np.argmax(sums / divisor)) == item.gold)
        prediction = int(np.argmax(sums))
        records.append(
            {
                "options": list(item.texts),
                "loglikelihoods": [round(float(value), 4) for value in sums],
                "gold": item.gold,
                "prediction": prediction,
            }
        )
    chance = float(np.mean([1 / len(item.pairs) for item in items]))
    if all(len(set(item.texts)) == 1 for item in items):
        hits = {"acc": hits["acc"]}
    found = {name: statistics.proportion(values, chance) for name, values in hits.items()}
    return {"n": len(items), "metrics": found, "items": records}

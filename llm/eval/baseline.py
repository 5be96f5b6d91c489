# SPDX-License-Identifier: Apache-2.0
"""The number to beat: an interpolated Kneser-Ney n-gram model on the same tokens."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from llm import files
from llm.core import statistics
from llm.errors import ConfigError, DataError
from llm.text import ngrams
from llm.text.records import read_documents


def evaluate(
    lm: Any,
    *,
    documents: str,
    split: str | None = "validation",
    run: str = "",
    train: str = "",
    order: int = 5,
    limit: int = 0,
) -> dict[str, Any]:
    """Count n-grams over a model's tokens and score documents as `perplexity` does.

    Args:
        lm: its tokenizer makes the tokens.
        documents, split, limit: what is scored; give the perplexity task the same.
        run: a pretraining workdir; the n-grams are counted on exactly the rows that its steps
            read, each once.
        train: or documents, all of whose "train" split is counted.
        order: longest n-gram.

    Raises:
        ConfigError: not one of run and train is given.
        DataError: the run's rows are gone.
    """
    if bool(run) == bool(train):
        raise ConfigError(
            "A kneser_ney task counts either a run's tokens or a corpus.",
            "Set its run=<pretraining workdir> or its train=<documents>.",
        )
    tokenizer = lm.tokenizer
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    source = seen_sequences(run) if run else corpus_sequences(train, tokenizer, start)
    model = ngrams.train(source, lm.config.vocab_size, order)
    found = read_documents(documents, split or None)
    texts = [d["text"] for d in (islice(found, limit) if limit else found)]
    encoded = [[*start, *ids] for ids in tokenizer.encode_batch(texts)]
    logps = ngrams.log_probs_batch(model, encoded)
    losses = [-float(values[len(start) :].sum()) / math.log(2) for values in logps]
    bits = statistics.ratio(losses, [len(text.encode("utf-8")) for text in texts])
    what = "same tokens" if run else "whole corpus"
    return {
        "n": len(texts),
        "metrics": {"bits_per_byte": bits.metric()},
        "label": f"{order}-gram, {what}",
        "trained_tokens": model.tokens,
        "n_grams": model.n_grams,
    }


def corpus_sequences(source: str, tokenizer: Any, start: list[int]) -> Iterator[list[int]]:
    """Yield the tokens of every training document, with its start and end."""
    for document in read_documents(source, "train"):
        yield [*start, *tokenizer.encode(document["text"]), tokenizer.eos_id]


def seen_sequences(run: str) -> Iterator[np.ndarray]:
    """Yield the documents (or parts, where rows cut them) that a run has trained on, each once."""
    from llm.core import checkpoint
    from llm.data import mixing
    from llm.data.rows import open_rows

    settings = files.read_json(files.path(run) / "config.json")
    steps = max(checkpoint.list_steps(run), default=0)
    if not steps:
        raise DataError(f"{run} has no checkpoints.", "Give the workdir of a pretraining run.")
    mixture = settings["data"].get("mixture") or {"data": {}}
    folder = files.path(run) / "rows"
    datasets = {name: open_rows(folder / name / "train") for name in mixture}
    feed = mixing.make_feed(
        datasets,
        settings["data"],
        steps=int(settings["train"].get("steps", steps)),
        seed=int(settings["seed"]),
        batch_size=int(settings["train"]["batch_size"]),
    )
    seen = {identity for step in range(steps) for identity in feed.ids(step)} - {("", -1)}
    for name, dataset in datasets.items():
        rows = np.array(sorted(row for owner, row in seen if owner == name), np.int64)
        for part in np.array_split(rows, math.ceil(len(rows) / 1024) or 1):
            yield from row_sequences(dataset.take(part)) if len(part) else ()


def row_sequences(batch: dict[str, np.ndarray]) -> Iterable[np.ndarray]:
    """Yield the token sequence of every segment of packed rows [B, T]."""
    for tokens, targets, segments in zip(
        batch["tokens"], batch["targets"], batch["segments"], strict=True
    ):
        for segment in range(1, int(segments.max(initial=0)) + 1):
            inside = segments == segment
            yield np.concatenate([tokens[inside][:1], targets[inside]])

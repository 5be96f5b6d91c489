# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts documents: per token, word and byte."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from llm.core import statistics
from llm.errors import DataError


def evaluate(
    lm: Any,
    *,
    documents: str,
    split: str | None = "validation",
    limit: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Score every document of a split on its own, from its first token.

    Args:
        lm: a language model with `loglikelihood_rolling` and a tokenizer.
        documents: file, directory or glob that `llm.text.records.read_documents` reads.
        split: of a corpus directory; None or "" for all.
        limit: documents to score at most; 0 for all.
        batch_size: documents handed to the model at a time.

    Returns:
        Metrics bits_per_byte, byte_perplexity, word_perplexity, token_perplexity, each with its
        standard error over documents.
    """
    from llm.text.records import read_documents

    found = read_documents(documents, split or None)
    texts = [d["text"] for d in (islice(found, limit) if limit else found)]
    return score(lm, texts, batch_size)


def score(lm: Any, texts: Sequence[str], batch_size: int = 32) -> dict[str, Any]:
    """Score texts; see `evaluate`."""
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError("There is no text to score.", "Choose another split or documents.")
    scores: list[float] = []
    for batch in batches(texts, batch_size):
        scores.extend(lm.loglikelihood_rolling(batch))
    lengths = [len(ids) for ids in lm.tokenizer.encode_batch(texts)]
    return {"n": len(texts), "metrics": metrics(texts, scores, lengths)}


def metrics(
    texts: Sequence[str], loglikelihoods: Sequence[float], token_counts: Sequence[int]
) -> dict[str, Any]:
    """Return the metrics of scored texts.

    Words are runs of non-space characters and bytes are UTF-8, both of the text as it is, so the
    numbers of models with different tokenizers compare.

    Args:
        texts: the documents.
        loglikelihoods: natural log-probability of each whole document.
        token_counts: scored tokens of each document.
    """
    losses = -np.asarray(loglikelihoods, np.float64)
    n_bytes = [len(text.encode("utf-8")) for text in texts]
    per_byte = statistics.ratio(losses, n_bytes)
    per_word = statistics.ratio(losses, [len(text.split()) for text in texts])
    per_token = statistics.ratio(losses, token_counts)
    bits = statistics.Estimate(per_byte.value / math.log(2), per_byte.stderr / math.log(2))
    return {
        "bits_per_byte": bits.metric(),
        "byte_perplexity": statistics.perplexity(per_byte),
        "word_perplexity": statistics.perplexity(per_word),
        "token_perplexity": statistics.perplexity(per_token),
        "bytes_per_token": statistics.ratio(n_bytes, token_counts).metric(),
    }


def batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Cut a sequence into lists of at most `size`."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])

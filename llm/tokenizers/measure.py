# SPDX-License-Identifier: Apache-2.0
"""How well a tokenizer fits a text: fertility, use of the vocabulary, loss of information."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from llm.tokenizers.base import Tokenizer

_BATCH = 256
_COUNTS = ("documents", "bytes", "words", "tokens", "fallback", "changed")


def fertility(tokenizer: Tokenizer, documents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Encode documents and report ratios, over all and per source.

    Args:
        documents: dicts with "text" and "source".

    Returns:
        {"vocab_size", "tokens_per_second", "all": ratios, "sources": {name: ratios}}; ratios are
        "documents", "bytes", "tokens", "bytes_per_token", "tokens_per_word" (words are what
        whitespace separates), "byte_fallback" (share of tokens that stand for an unknown
        character or one byte of it), "vocabulary_used" (share of ordinary tokens that occur) and
        "round_trip" (share of documents that decode to exactly themselves).
    """
    counts: dict[str, dict[str, int]] = {}
    used: dict[str, np.ndarray] = {}
    fallback = np.zeros(tokenizer.vocab_size, bool)
    fallback[sorted(tokenizer.codec.fallback_ids)] = True
    seconds = 0.0
    for batch in _batches(documents):
        texts = [document["text"] for document in batch]
        started = time.perf_counter()
        encoded = tokenizer.encode_batch(texts)
        seconds += time.perf_counter() - started
        for document, ids in zip(batch, encoded, strict=True):
            source, text = str(document.get("source", "")), document["text"]
            count = counts.setdefault(source, dict.fromkeys(_COUNTS, 0))
            array = np.asarray(ids, np.int64)
            seen = used.setdefault(source, np.zeros(tokenizer.vocab_size, bool))
            seen[array] = True
            count["documents"] += 1
            count["bytes"] += len(text.encode("utf-8", "replace"))
            count["words"] += len(text.split())
            count["tokens"] += len(ids)
            count["fallback"] += int(fallback[array].sum())
            count["changed"] += int(tokenizer.decode(ids) != text)
    ordinary = tokenizer.vocab_size - len(tokenizer.special_tokens)
    total = {name: sum(count[name] for count in counts.values()) for name in _COUNTS}
    everywhere = np.any(list(used.values()), axis=0) if used else np.zeros(1, bool)
    return {
        "vocab_size": tokenizer.vocab_size,
        "tokens_per_second": round(total["tokens"] / max(seconds, 1e-9)),
        "all": _ratios(total, everywhere, ordinary),
        "sources": {name: _ratios(counts[name], used[name], ordinary) for name in sorted(counts)},
    }


def _batches(documents: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _ratios(count: Mapping[str, int], used: np.ndarray, ordinary: int) -> dict[str, Any]:
    tokens = max(count["tokens"], 1)
    return {
        "documents": count["documents"],
        "bytes": count["bytes"],
        "tokens": count["tokens"],
        "bytes_per_token": round(count["bytes"] / tokens, 4),
        "tokens_per_word": round(count["tokens"] / max(count["words"], 1), 4),
        "byte_fallback": round(count["fallback"] / tokens, 6),
        "vocabulary_used": round(int(used.sum()) / max(ordinary, 1), 4),
        "round_trip": round(1 - count["changed"] / max(count["documents"], 1), 6),
    }

# SPDX-License-Identifier: Apache-2.0
"""Note in every document how well a language model predicts it, for the corpus stage to filter by.

The corpus stage's workers hold no accelerator and no model; so a model's judgement is a step of
its own, whose output is read like any documents (filter `noted`).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from llm import files
from llm.eval.perplexity import batches
from llm.text import records

PROBE = "The quick brown fox jumps over 13 lazy dogs; def main(): return None"


def evaluate(
    lm: Any,
    *,
    documents: str,
    target: str,
    split: str | None = None,
    field: str = "lm_bits_per_byte",
    max_bytes: int = 4_000,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Write the documents with the model's bits per byte in their `meta`.

    A shard that was written before by the same model with the same options is kept.

    Args:
        lm: a language model with `loglikelihood_rolling`.
        documents: file, directory or glob that `llm.text.records.read_documents` reads.
        target: folder for the annotated shards, one .jsonl.gz per shard read.
        split: of a corpus directory; None or "" for all.
        field: key of `meta` that receives the value.
        max_bytes: of UTF-8 of each document that are scored.
        batch_size: documents handed to the model at a time.

    Returns:
        n, and metrics: mean and deciles of the bits per byte, to choose a threshold by.
    """
    (known,) = lm.loglikelihood_rolling([PROBE])  # names the model by what it says
    values: list[float] = []
    for name, shard in _named(records.find_shards(documents, split or None)).items():
        key = files.hash_json([files.hash_file(shard), f"{known:.3f}", field, max_bytes])
        note = Path(target) / "work" / f"{name}.json"
        written = Path(target) / f"{name}.jsonl.gz"
        done = files.read_json(note) if note.exists() and written.exists() else {}
        if done.get("key") != key or files.hash_file(written) != done["sha"]:
            found = list(records.read_documents(shard))
            scores = _scores(lm, [d["text"] for d in found], max_bytes, batch_size)
            for document, score in zip(found, scores, strict=True):
                document["meta"][field] = round(score, 4)
            done = {"key": key, "values": scores, **records.write_shard(written, found)}
            files.write_json(note, done)
        values += done["values"]
    deciles = {f"decile_{q}": float(np.quantile(values, q / 10)) for q in range(1, 10)}
    metrics = {"bits_per_byte": float(np.mean(values)), **deciles}
    return {"n": len(values), "metrics": {k: {"value": v} for k, v in metrics.items()}}


def _named(shards: list[Path]) -> dict[str, Path]:
    """Name outputs after their shards, which begins with the split; twins get a number."""
    stems = [shard.name.split(".")[0] for shard in shards]
    twice = {stem for stem, count in Counter(stems).items() if count > 1}
    return {
        f"{stem}-{number:05d}" if stem in twice else stem: shard
        for number, (stem, shard) in enumerate(zip(stems, shards, strict=True))
    }


def _scores(lm: Any, texts: list[str], max_bytes: int, batch_size: int) -> list[float]:
    cut = [text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore") for text in texts]
    sizes = [len(text.encode()) for text in cut]
    nats = [nat for batch in batches(cut, batch_size) for nat in lm.loglikelihood_rolling(batch)]
    return [float(-nat / np.log(2) / size) for nat, size in zip(nats, sizes, strict=True)]

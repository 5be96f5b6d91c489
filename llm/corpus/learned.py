# SPDX-License-Identifier: Apache-2.0
"""Filters that learn from reference documents: a quality classifier and a perplexity model.

Train:  python -m llm.corpus.learned quality GOOD BAD model.npz
        python -m llm.corpus.learned perplexity GOOD model.npz
GOOD and BAD are anything the corpus stage reads or wrote: JSONL, Parquet, text, folders of them.
Both are plain NumPy: scoring needs nothing else, and a model is one .npz file without code.
"""

import argparse
import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.corpus.documents import Document, Outcome, judge
from llm.errors import ConfigError, DataError, UserError
from llm.text import ngrams, records
from llm.text.views import ROLL, View, Vocabulary, mix, views

BUCKETS = 1 << 18
LONGEST = 2_000  # words of a document that are looked at
BYTES = 20_000  # bytes of a document that the perplexity model reads
ORDER = 5


class Classifier(NamedTuple):
    """A logistic model over hashed words and word pairs: weights float32 [buckets], bias."""

    weights: np.ndarray
    bias: float


def features(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashed n-grams of a text and their values, of unit length.

    Words count without case, accents and digits' values; a value is 1 + log(count).
    """
    hashed = view.vocabulary.column("shingle")[view.ids[:LONGEST]]
    pairs = mix(hashed[:-1] * ROLL + hashed[1:])
    both = np.concatenate([mix(hashed), pairs]) & np.uint64(BUCKETS - 1)
    places, counts = np.unique(both.astype(np.int64), return_counts=True)
    values = (1 + np.log(counts)).astype(np.float32)
    return places, values / max(float(np.linalg.norm(values)), 1e-9)


def train_classifier(
    good: Iterable[str], bad: Iterable[str], *, epochs: int = 5, rate: float = 0.5, seed: int = 0
) -> Classifier:
    """Fit the classifier by Adagrad on logistic loss; classes weigh the same.

    Raises:
        DataError: a class has no document.
    """
    vocabulary = Vocabulary()
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    labels: list[float] = []
    for label, texts in ((1.0, good), (0.0, bad)):
        before = len(rows)
        rows += [features(View(text, vocabulary)) for text in texts]
        labels += [label] * (len(rows) - before)
        if len(rows) == before:
            raise DataError(
                f"There is no {'good' if label else 'bad'} document to learn from.",
                "Give files with documents for both classes.",
            )
    truth = np.array(labels)
    share = np.where(truth == 1, truth.mean(), 1 - truth.mean())
    weights, squares = np.zeros(BUCKETS, np.float32), np.full(BUCKETS, 1e-6, np.float32)
    bias, bias_squares = 0.0, 1e-6
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(epochs):
        for row in generator.permutation(len(rows)):
            places, values = rows[row]
            score = float(weights[places] @ values) + bias
            slope = (1 / (1 + np.exp(-np.clip(score, -30, 30))) - truth[row]) * 0.5 / share[row]
            gradient = slope * values
            squares[places] += gradient**2
            weights[places] -= rate * gradient / np.sqrt(squares[places])
            bias_squares += slope**2
            bias -= rate * slope / np.sqrt(bias_squares)
    return Classifier(weights, float(bias))


def probability(model: Classifier, view: View) -> float:
    """Return the probability that a text belongs to the good class."""
    places, values = features(view)
    score = float(model.weights[places] @ values) + model.bias
    return float(1 / (1 + np.exp(-np.clip(score, -30, 30))))


def train_perplexity(texts: Iterable[str], order: int = ORDER) -> ngrams.Model:
    """Fit an interpolated Kneser-Ney model of bytes."""
    return ngrams.train([_bytes(text) for text in texts], 256, order)


def bits_per_byte(model: ngrams.Model, text: str) -> float:
    """Return the mean surprise of a text's bytes."""
    data = _bytes(text)
    return float(-ngrams.log_probs(model, data).mean() / np.log(2)) if len(data) else 0.0


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "replace")[:BYTES], np.uint8)


def quality_model(
    batch: list[Document], *, model: str = "", min_score: float = 0.5
) -> list[Outcome]:
    """Keep documents that look like the good class of a trained classifier.

    Args:
        batch: documents; the score is noted in meta as "quality".
        model: file made by `python -m llm.corpus.learned quality`.
        min_score: probability to reach.
    """
    trained = _load(model, "quality_model")
    results: list[Outcome] = []
    for document, view in zip(batch, views(batch), strict=True):
        score = probability(trained, view)
        noted = {**document["meta"], "quality": round(score, 4)}
        checks = [("quality_model", score, min_score, 1)]
        results.append(judge(document, checks, {**document, "meta": noted}))
    return results


def perplexity(
    batch: list[Document], *, model: str = "", max_bits: float = 4.0, min_bits: float = 0.0
) -> list[Outcome]:
    """Keep documents that a model of reference text finds neither too strange nor too plain.

    Args:
        batch: documents; the value is noted in meta as "bits_per_byte".
        model: file made by `python -m llm.corpus.learned perplexity`.
        max_bits, min_bits: bounds of the mean bits per byte.
    """
    trained = _load(model, "perplexity")
    results: list[Outcome] = []
    for document in batch:
        bits = bits_per_byte(trained, document["text"])
        noted = {**document["meta"], "bits_per_byte": round(bits, 4)}
        checks = (("perplexity_high", bits, max_bits, -1), ("perplexity_low", bits, min_bits, 1))
        results.append(judge(document, checks, {**document, "meta": noted}))
    return results


def noted(
    batch: list[Document], *, field: str = "lm_bits_per_byte", most: float = 8.0, least: float = 0.0
) -> list[Outcome]:
    """Keep documents of which a number in `meta` lies within bounds, whoever noted it.

    Args:
        batch: documents; a language model's bits per byte are noted by configs/eval/annotate.py.
        field: key of the number.
        most, least: its bounds.

    Raises:
        DataError: a document has no such number.
    """
    results: list[Outcome] = []
    for document in batch:
        value = document["meta"].get(field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(
                f"Document {document['id']} has no number {field!r} in its meta.",
                "Note one first (configs/eval/annotate.py), or set --config.filters.noted.field.",
            )
        checks = ((f"{field}_high", value, most, -1), (f"{field}_low", value, least, 1))
        results.append(judge(document, checks))
    return results


def save(model: Classifier | ngrams.Model, file: Path) -> None:
    """Store a model as one .npz file."""
    if isinstance(model, Classifier):
        kept = np.flatnonzero(model.weights)
        arrays = {"places": kept, "weights": model.weights[kept], "bias": np.array(model.bias)}
    else:
        arrays = {"shape": np.array([model.vocab_size, model.order, model.tokens])}
        for number, level in enumerate(model.levels):
            arrays |= {f"{name}_{number}": value for name, value in level._asdict().items()}
    with file.open("wb") as target:
        np.savez_compressed(target, allow_pickle=False, **arrays)


@functools.lru_cache(maxsize=4)
def _load(file: str, name: str) -> Any:
    """Load a model of the kind a filter needs."""
    if not file:
        raise ConfigError(
            f"The filter {name} has no model.",
            f"Train one (see llm/corpus/learned.py) and give --config.filters.{name}.model=FILE.",
        )
    try:
        with np.load(file) as stored:
            if name == "quality_model":
                weights = np.zeros(BUCKETS, np.float32)
                weights[stored["places"]] = stored["weights"]
                return Classifier(weights, float(stored["bias"]))
            size, order, tokens = (int(n) for n in stored["shape"])
            levels = tuple(
                ngrams.Level(*(stored[f"{field}_{n}"] for field in ngrams.Level._fields))
                for n in range(order)
            )
            return ngrams.Model(size, order, levels, tokens)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{file} is no model for the filter {name} ({error}).", "Train it again."
        ) from error


def main(arguments: list[str]) -> int:
    """Train a model from files of documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=("quality", "perplexity"))
    parser.add_argument("files", nargs="+", help="GOOD [BAD] MODEL")
    options = parser.parse_args(arguments)
    *sources, target = options.files
    if len(sources) != (2 if options.kind == "quality" else 1):
        parser.error("quality takes GOOD BAD MODEL, perplexity takes GOOD MODEL")
    texts = [[d["text"] for d in records.read_documents(source)] for source in sources]
    model = train_classifier(*texts) if options.kind == "quality" else train_perplexity(texts[0])
    save(model, Path(target))
    print(f"{options.kind} model of {' and '.join(map(str, map(len, texts)))} documents: {target}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

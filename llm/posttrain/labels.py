# SPDX-License-Identifier: Apache-2.0
"""Rows for classification: whole texts with a label, or words with a label each.

Records are {"text", "label"} or {"tokens": [word, …], "labels": [label, …]}; labels are names or
integers. A row's targets are classes; a text's class stands at all its tokens (the objective picks
the one that counts), a word's at its first token.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llm import files
from llm.data import packing, rows, sources
from llm.errors import DataError
from llm.posttrain.rows import Splits, part
from llm.text.records import read_documents

Records = Callable[[], Iterable[dict[str, Any]]]


def labels_of(record: dict[str, Any], name: str) -> list[str]:
    """Return a record's labels as names.

    Raises:
        DataError: it has none, or not one per word.
    """
    if "tokens" in record:
        found, words = record.get("labels"), record["tokens"]
        if not isinstance(found, list) or len(found) != len(words) or not words:
            raise DataError(
                f"{name} has not one label per token.", 'Write {"tokens": […], "labels": […]}.'
            )
        return [str(label) for label in found]
    if not isinstance(record.get("text"), str) or record.get("label") is None:
        raise DataError(f"{name} has no text and label.", 'Write {"text": "…", "label": "…"}.')
    return [str(record["label"])]


def find_labels(records: Iterable[dict[str, Any]]) -> list[str]:
    """Return all labels, sorted: numbers by value, names by letter."""
    found: set[str] = set()
    for number, record in enumerate(records):
        found.update(labels_of(record, f"record {number}"))
    return sorted(found, key=lambda x: (not x.isdigit(), int(x) if x.isdigit() else 0, x))


def example(record: dict[str, Any], tokenizer: Any, classes: dict[str, int], name: str) -> Any:
    """Return one record as 1-D tokens, targets and weights: [start] text [end].

    Raises:
        DataError: a label is not among the classes.
    """
    names = labels_of(record, name)
    strange = [label for label in names if label not in classes]
    if strange:
        raise DataError(
            f"{name} has the label {strange[0]!r}, which is not among {', '.join(classes)}.",
            "List all labels in config.data.classes, or leave that empty.",
        )
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if "tokens" not in record:
        ids = [start, *tokenizer.encode(record["text"]), tokenizer.eos_id]
        targets, weights = [classes[names[0]]] * len(ids), [1.0] * len(ids)
    else:
        ids, targets, weights = [start], [0], [0.0]
        for number, (word, label) in enumerate(zip(record["tokens"], names, strict=True)):
            pieces = tokenizer.encode(f" {word}" if number else str(word))
            ids += pieces
            targets += [classes[label]] * len(pieces)
            weights += [1.0, *[0.0] * (len(pieces) - 1)][: len(pieces)]
        ids, targets, weights = [*ids, tokenizer.eos_id], [*targets, 0], [*weights, 0.0]
    return {
        "tokens": np.asarray(ids, np.int32),
        "targets": np.asarray(targets, np.int32),
        "weights": np.asarray(weights, np.float32),
    }


def _write(
    records: Records, tokenizer: Any, length: int, folder: Any, classes: list[str], key: str
) -> rows.RowDataset:
    """Write the rows of one split; longer texts are cut, keeping their end token."""
    if len(classes) < 2:
        raise DataError(
            f"The data has one label only: {', '.join(classes) or 'none'}.",
            "Classification needs two: take other data, or another entry of meta (data.field).",
        )
    numbers = {label: i for i, label in enumerate(classes)}

    def examples() -> Iterator[packing.Row]:
        for number, record in enumerate(records()):
            row = example(record, tokenizer, numbers, f"record {number}")
            if len(row["tokens"]) > length:
                row = {k: np.concatenate([v[: length - 1], v[-1:]]) for k, v in row.items()}
            yield row

    made = files.hash_json([1, "labels", key, tokenizer.hash, length, classes])
    if rows.reusable(folder, made) is None:
        meta = {"kind": "labels", "tokenizer_hash": tokenizer.hash, "config_hash": made}
        blocks = packing.pack_blocks(examples(), length, split_long=False)
        rows.write_rows(folder, blocks, {**meta, "labels": classes})
    return rows.open_rows(folder)


def labels(
    tokenizer: Any,
    folder: str,
    *,
    path: str,
    length: int,
    classes: Sequence[str] = (),
    validation: float = 0.05,
) -> Splits:
    """Write labelled records of a JSONL file.

    Args:
        tokenizer: gives the ids.
        folder: of the rows.
        path: the file.
        length: tokens per row; longer texts are cut.
        classes: labels in the order of their numbers; by default those found, sorted.
        validation: share held out, by a hash of each record.
    """
    known = list(classes) or find_labels(sources.read(path))
    made = {}
    for split in ("train", "validation") if validation else ("train",):
        target = files.path(folder) / split
        key = f"{sources.fingerprint(path)}/{split}/{validation}"
        source = _split_reader(path, split, validation)
        made[split] = _write(source, tokenizer, length, target, known, key)
    return made


def _split_reader(path: str, split: str, validation: float) -> Records:
    return lambda: part(path, split, validation)


def document_labels(
    tokenizer: Any, folder: str, *, path: str, length: int, field: str = "package"
) -> Splits:
    """Write the documents of a corpus with an entry of their `meta` as the label."""
    given = files.path(path)
    corpus = str(given / "documents" if (given / "documents").is_dir() else given)
    made: Splits = {}
    known: list[str] = []
    for split in ("train", "validation"):
        records = [
            {"text": d["text"], "label": str(d["meta"][field])}
            for d in read_documents(corpus, split)
            if d.get("meta", {}).get(field)
        ]
        known = known or find_labels(records)
        records = [record for record in records if record["label"] in known]
        target = files.path(folder) / split
        made[split] = _write(
            functools.partial(list, records),
            tokenizer,
            length,
            target,
            known,
            files.hash_json(records),
        )
    return made

# SPDX-License-Identifier: Apache-2.0
"""Where pre-training rows come from: each function gives held-out splits beside "train"."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llm import files
from llm.data import prepare
from llm.data.rows import RowDataset, open_rows
from llm.errors import ConfigError, DataError
from llm.text.records import find_shards, read_documents

Splits = dict[str, RowDataset]


def documents(
    tokenizer: Any,
    folder: str,
    *,
    path: str,
    length: int,
    validation: float = 0.01,
    min_quality: float = 0.0,
    max_quality: float = 0.0,
) -> Splits:
    """Pack documents: a corpus folder with its own splits, or files with a share held out.

    Args:
        tokenizer: gives the ids.
        folder: where rows are written, or found again.
        path: a folder of the corpus stage, or JSONL, Parquet or text files.
        length: tokens per row.
        validation: share of the documents held out, by a hash of their text, of plain files.
        min_quality, max_quality: take only documents whose meta's "quality" is at least the one
            and below the other (0: no bound). Several such sources in config.data.mixture, with
            temperature 1 and weights 1, 2, 4, show better documents so much more often.
    """
    bounds = (min_quality, max_quality or float("inf"))
    given = files.path(path)
    corpus = given / "documents" if (given / "documents").is_dir() else given
    has_splits = (corpus / "manifest.json").exists()
    made = {}
    for split in ("train", "validation"):
        target = str(files.path(folder) / split)
        if has_splits:
            if not any(corpus.glob(f"{split}-*")):
                continue
            if bounds == (0.0, float("inf")):
                prepare.prepare_documents(str(corpus), tokenizer, length, target, split=split)
            else:
                best = _of_quality(read_documents(corpus, split), bounds)
                source = files.hash_json([files.hash_file(corpus / "manifest.json"), split, bounds])
                prepare.prepare_documents(best, tokenizer, length, target, source_hash=source)
        elif split == "train" or validation > 0:
            part = _of_quality(_part(path, split, validation), bounds)
            hashes = [files.hash_file(shard) for shard in find_shards(path)]
            source = files.hash_json([hashes, split, validation, bounds])
            prepare.prepare_documents(part, tokenizer, length, target, source_hash=source)
        else:
            continue
        made[split] = open_rows(target)
    return made


def _of_quality(
    documents: Iterable[Mapping[str, Any]], bounds: tuple[float, float]
) -> Iterator[Mapping[str, Any]]:
    """Yield the documents whose noted quality lies within bounds; without a note it is 0."""
    for document in documents:
        if bounds[0] <= float(document.get("meta", {}).get("quality", 0.0)) < bounds[1]:
            yield document


def _part(path: str, split: str, validation: float) -> Iterator[Mapping[str, Any]]:
    """Yield the documents on one side of a split by the hash of their text."""
    for document in read_documents(path):
        place = int(files.hash_bytes(document["text"].encode("utf-8"))[:8], 16) / 2**32
        if (place < validation) == (split == "validation"):
            yield document


def text(tokenizer: Any, folder: str, *, path: str, length: int, validation: float = 0.1) -> Splits:
    """Cut one plain text into blocks: the first part trains, the last `validation` share tests."""
    prepare.prepare_text(path, tokenizer, length, folder, validation=validation)
    names = ("train", "validation") if validation else ("train",)
    return {name: open_rows(files.path(folder) / name) for name in names}


def rows(tokenizer: Any, folder: str, *, path: str, length: int) -> Splits:
    """Open rows that were written before: `path/train`, `path/validation`, or `path` itself."""
    del folder
    root = files.path(path)
    found = {p.name: open_rows(p) for p in sorted(root.glob("*")) if (p / "manifest.json").exists()}
    made = found or {"train": open_rows(root)}
    for dataset in made.values():
        if dataset.manifest["length"] != length:
            raise ConfigError(
                f"Rows in {path} have length {dataset.manifest['length']}, not {length}.",
                "Set config.data.length to it, or make the rows again.",
            )
        prepare.check_tokenizer(dataset.manifest, tokenizer, path)
    if "train" not in made:
        raise DataError(f"{path} holds no train rows.", "Make them with a pretrain run.")
    return made


def tfds(
    tokenizer: Any,
    folder: str,
    *,
    path: str,
    length: int,
    data_dir: str = "",
    train: str = "train",
    validation: str = "validation",
    text_field: str = "text",
) -> Splits:
    """Pack a TensorFlow Datasets source through its SeqIO task; needs the extra `data`.

    Rows that were written before are used again without importing TensorFlow.

    Args:
        tokenizer: gives the ids.
        folder: where rows are written, or found again.
        path: name, configuration and version, such as "c4/en:3.1.0".
        length: tokens per row.
        data_dir: folder (or bucket) of the prepared dataset; "" for the usual place.
        train: slice to train on, such as "train[1%:]".
        validation: slice to hold out; "" for none.
        text_field: feature that holds the text.
    """
    slices = {"train": train, "validation": validation}

    def read(split: str) -> Iterator[Mapping[str, Any]]:
        from llm.data import tasks

        named = {name: part for name, part in slices.items() if part}
        task = tasks.tfds_task(
            "pretrain",
            path,
            tokenizer,
            data_dir=data_dir or None,
            splits=named,
            text_field=text_field,
        )
        yield from tasks.source_documents(task, split, text_field)

    made = {}
    for split, part in slices.items():
        if part:
            target = files.path(folder) / split
            source = files.hash_json([path, part, data_dir, text_field])
            prepare.prepare_documents(
                read(split), tokenizer, length, str(target), source_hash=source
            )
            made[split] = open_rows(target)
    return made

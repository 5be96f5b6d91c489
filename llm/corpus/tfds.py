# SPDX-License-Identifier: Apache-2.0
"""A prepared TensorFlow dataset as a source of documents; TensorFlow loads only when it is read."""

import itertools
from collections.abc import Iterator
from typing import Any

from llm import files
from llm.corpus.documents import Document, Plan, Shard
from llm.data import sources
from llm.errors import ConfigError, DataError
from llm.text import records

OWN = ("id", "url", "licence", "license", "title")


def plan_tfds(
    *,
    dataset: str = "",
    split: str = "train",
    data_dir: str = "",
    text_field: str = "text",
    max_documents: int = 0,
    max_error_rate: float = 0.05,
    shards: int = 16,
) -> Plan:
    """Cut a prepared dataset's split into ranges of examples.

    Args:
        dataset: its name, with its configuration and version if wanted ("wikipedia/20230601.en").
        split: which split.
        data_dir: where it was prepared ("": the library's default folder).
        text_field: the feature that holds the text.
        max_documents: how many documents to read at most from each shard (0: all).
        max_error_rate: share of a shard's examples whose text may be no valid UTF-8.
        shards: number of ranges.
    """
    name = dataset
    builder = _builder(name, data_dir)
    if split not in builder.info.splits:
        raise DataError(
            f"The dataset {name} has no prepared split {split}.",
            f"It has: {', '.join(builder.info.splits) or 'none; prepare it with tfds build'}.",
        )
    if text_field not in builder.info.features:
        raise ConfigError(
            f"The dataset {name} has no feature {text_field}.",
            f"Set source.text_field to one of {', '.join(builder.info.features)}.",
        )
    count = builder.info.splits[split].num_examples
    bounds = [count * i // shards for i in range(shards + 1)]
    fields = {"name": name, "data_dir": data_dir, "text_field": text_field,
              "max_error_rate": max_error_rate}  # fmt: skip
    listed = [
        {
            "range": f"{split}[{low}:{high}]",
            "first": low,
            "split": split,
            "fields": fields,
            "limit": max_documents,
            "input_hash": files.hash_json([builder.info.full_name, count, split, low, high]),
        }
        for low, high in itertools.pairwise(bounds)
        if high > low
    ]
    notes = {"dataset": builder.info.full_name, "files": len(listed)}
    return Plan(listed, files.hash_json([s["input_hash"] for s in listed]), notes)


def read_tfds(shard: Shard, report: records.ReadReport) -> Iterator[Document]:
    """Yield the documents of one range; examples without valid text are counted."""
    import tensorflow_datasets

    fields, bad, good = shard["fields"], 0, 0
    builder = _builder(fields["name"], fields["data_dir"])
    data = builder.as_dataset(split=shard["range"], shuffle_files=False)
    for place, example in enumerate(tensorflow_datasets.as_numpy(data), start=shard["first"]):
        where = f"{shard['split']}:{place}"
        try:
            text = _plain(example[fields["text_field"]])
        except UnicodeDecodeError as error:
            bad += 1
            report.bad(f"{fields['name']}:{where}", f"invalid UTF-8 at byte {error.start}")
            records.check_errors(
                fields["name"], where, "invalid UTF-8", bad, good, fields["max_error_rate"], False
            )
            continue
        good += 1
        report.documents += 1
        yield _document(fields["name"], where, text, example)
        if shard["limit"] and good >= shard["limit"]:
            return
    if bad:
        records.check_errors(
            fields["name"], where, "invalid UTF-8", bad, good, fields["max_error_rate"], True
        )


def _document(name: str, where: str, text: str, example: dict[str, Any]) -> Document:
    document: Document = {"id": f"{name}:{where}", "text": text, "source": name}
    known = {key: _plain(example[key]) for key in OWN if isinstance(example.get(key), bytes | str)}
    if known.get("url"):
        document["url"] = known["url"]
    if known.get("licence") or known.get("license"):
        document["licence"] = known.get("licence") or known["license"]
    document["meta"] = {"kind": "example", **{k: known[k] for k in ("title",) if k in known}}
    return document


def _plain(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _builder(name: str, data_dir: str) -> Any:
    if not name:
        raise ConfigError("source.dataset is empty.", "Give --config.source.dataset=NAME.")
    return sources.open_tfds(name, data_dir)

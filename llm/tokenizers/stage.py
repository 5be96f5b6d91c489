# SPDX-License-Identifier: Apache-2.0
"""The tokenizer stage: sample documents, train, measure, write `tokenizer/` and its report."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from llm import files
from llm.core import config as configs
from llm.errors import DataError
from llm.text import records
from llm.tokenizers import loading, measure
from llm.tokenizers.base import Tokenizer

# Name -> its function (texts, **tokenizer section) -> Tokenizer.
TRAINERS = {
    "bpe": "llm.tokenizers.sentencepiece:train",
    "unigram": "llm.tokenizers.sentencepiece:train",
    "byte_bpe": "llm.tokenizers.subwords:train_byte_bpe",
    "wordpiece": "llm.tokenizers.subwords:train_wordpiece",
    "char": "llm.tokenizers.charlevel:train",
}
REPORT = "fertility.json"
MAX_SHOWN = 12  # sources in the printed table
# Heading -> key and format of a ratio in the report.
COLUMNS = {
    "B/token": ("bytes_per_token", "{:.2f}"),
    "tok/word": ("tokens_per_word", "{:.2f}"),
    "unknown": ("byte_fallback", "{:.2%}"),
    "vocab": ("vocabulary_used", "{:.1%}"),
    "lossless": ("round_trip", "{:.2%}"),
}


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Train a tokenizer on documents.

    Args:
        config: `seed`, `tokenizer` {"name", …} (see `TRAINERS`) and `data` (see `data_options`).
        workdir: receives tokenizer/, fertility.json and config.json. A tokenizer that was already
            trained on the same documents with the same settings is kept.

    Returns:
        The fertility report.

    Raises:
        ConfigError: an unknown name or a wrong option.
        DataError: there is no text.
    """
    trainer = check(config)
    options = configs.bind(data_options, config.data, "data")
    data = data_options(**options)
    place = files.path(workdir)
    arguments = configs.bind(trainer, config.tokenizer, "tokenizer", given=("texts",))
    sample = draw(documents(data["path"], data["split"]), config.seed, data["sample_bytes"])
    if not sample:
        raise DataError(f"There is no text in {data['path']!r}.", "Check data.path and data.split.")
    key = files.hash_json([arguments, config.tokenizer.name, [item["text"] for item in sample]])
    report = _known(place, key)
    if report is not None:
        print(f"The tokenizer in {place / 'tokenizer'} is up to date.")
        show(report)
        return report
    tokenizer: Tokenizer = trainer((item["text"] for item in sample), **arguments)
    tokenizer.save(place / "tokenizer")
    held_out = _held_out(data, config.seed)
    report = {
        "key": key,
        "name": config.tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "trained_on": {"documents": len(sample), "bytes": sum(map(_size, sample))},
        "measured_on": "validation" if held_out else "the sample it was trained on",
        **measure.fertility(tokenizer, held_out or sample),
    }
    files.write_json(place / "config.json", configs.to_dict(config))
    files.write_json(place / REPORT, report)
    show(report)
    return report


def check(config: Any) -> Any:
    """Return the trainer that the config names, all sections checked against their functions."""
    spec = configs.choose(config.tokenizer.name, TRAINERS, "tokenizer")
    trainer = configs.resolve_builder(spec)
    configs.bind(trainer, config.tokenizer, "tokenizer", given=("texts",))
    configs.bind(data_options, config.data, "data")
    return trainer


def data_options(
    path: str = "",
    split: str = "train",
    sample_bytes: int = 50_000_000,
    measure_bytes: int = 5_000_000,
) -> dict[str, Any]:
    """Check the data section.

    Args:
        path: documents (what `llm.text.records` reads, or the workdir of the corpus stage); ""
            takes the help topics that Python itself carries, which is enough to try things out.
        split: which shards to train on.
        sample_bytes: bytes of text to train on, drawn by seed.
        measure_bytes: bytes of the validation split to measure on.
    """
    return {
        "path": path,
        "split": split,
        "sample_bytes": sample_bytes,
        "measure_bytes": measure_bytes,
    }


def documents(path: str, split: str) -> Iterator[dict[str, Any]]:
    """Yield the documents of a path; "" yields Python's help topics.

    Raises:
        DataError: nothing is found.
    """
    if path:
        yield from records.read_documents(path, split or None)
        return
    from pydoc_data import topics

    for name, text in sorted(topics.topics.items()):
        yield {"id": name, "text": text, "source": "python help topics"}


def draw(items: Iterable[Mapping[str, Any]], seed: int, limit: int) -> list[Mapping[str, Any]]:
    """Draw documents by seed until a limit of bytes, in one pass; the order of input is kept.

    The choice depends on the seed and each document's place and id, not on how many there are of
    them: every document has a random priority, and those with the lowest are kept.
    """
    kept: list[tuple[int, int, Mapping[str, Any]]] = []  # heap, largest priority first
    total = 0
    for place, item in enumerate(items):
        name = f"{seed}\0{item.get('id', '')}\0{place}".encode("utf-8", "replace")
        priority = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
        heapq.heappush(kept, (-priority, place, item))
        total += _size(item)
        while total > limit and len(kept) > 1:
            total -= _size(heapq.heappop(kept)[2])
    return [item for _, _, item in sorted(kept, key=lambda entry: entry[1])]


def show(report: Mapping[str, Any]) -> None:
    """Print the fertility report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report['name']} tokenizer, {report['vocab_size']} tokens")
    for heading in ("source", "docs", *COLUMNS):
        table.add_column(heading, justify="left" if heading == "source" else "right", no_wrap=True)
    largest = sorted(report["sources"].items(), key=lambda entry: -entry[1]["bytes"])
    for name, ratios in [*largest[:MAX_SHOWN], ("all", report["all"])]:
        numbers = [form.format(ratios[key]) for key, form in COLUMNS.values()]
        table.add_row(name, f"{ratios['documents']:,}", *numbers)
    console = Console()
    console.print(table)
    if len(largest) > MAX_SHOWN:
        console.print(f"{len(largest) - MAX_SHOWN} smaller sources are in {REPORT}.")
    console.print(f"Measured on: {report['measured_on']}.")


def _held_out(data: Mapping[str, Any], seed: int) -> list[Mapping[str, Any]]:
    if not data["path"] or data["split"] == "validation":
        return []
    try:
        return draw(documents(data["path"], "validation"), seed, data["measure_bytes"])
    except DataError:  # most inputs have no split
        return []


def _known(place: Any, key: str) -> dict[str, Any] | None:
    """Return the report of a finished run with the same key and an intact tokenizer."""
    if not (place / REPORT).exists():
        return None
    report = files.read_json(place / REPORT)
    if report.get("key") != key:
        return None
    try:
        intact = loading.load(place / "tokenizer").hash == report["tokenizer_hash"]
    except DataError:
        return None
    return report if intact else None


def _size(item: Mapping[str, Any]) -> int:
    text = item["text"]
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))

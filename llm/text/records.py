# SPDX-License-Identifier: Apache-2.0
"""Read and write document shards: JSONL (plain, gzip, zstd), Parquet, text, folders of shards.

A document is `{"id", "text", "source", "url"?, "licence"?, "meta": {...}}`.
"""

import glob
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm import files
from llm.errors import DataError
from llm.text.lines import read_lines

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
MAX_TEXT = 1 << 30  # bytes of a .txt file, which is one document
MAX_ROW_GROUP = 1 << 33  # bytes that a Parquet file may say one of its row groups unpacks to
EARLY_CHECK = 1000  # records after which a file may be given up before its end
REMEMBERED = 10_000  # bad records whose places are kept


@dataclass
class ReadReport:
    """Count what a read met: good documents, bad records, and where they lie and why."""

    documents: int = 0
    errors: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)

    @property
    def examples(self) -> list[dict[str, Any]]:
        """Return the first ten bad records."""
        return self.rejected[:10]

    def bad(self, where: str, reason: str) -> None:
        """Count one bad record and remember where it lies."""
        self.errors += 1
        if len(self.rejected) < REMEMBERED:
            self.rejected.append({"where": where, "reason": reason})


def read_documents(
    source: str | os.PathLike,
    split: str | None = None,
    *,
    max_error_rate: float = 0.05,
    text_field: str = "text",
    id_field: str = "id",
    report: ReadReport | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file, a glob or a folder, in a fixed order.

    Args:
        source: a file with one of `SUFFIXES`, a glob of them, or a folder. A folder with a
            `manifest.json` yields its shards in the manifest's order.
        split: only the shards of this split ("train", "validation"); None reads all of them.
        max_error_rate: share of a file's records that may be corrupt; they are skipped and counted
            (one is always forgiven, unless the rate is 0).
        text_field, id_field: the names of these fields in JSON and Parquet records.
        report: filled with the counts of the read.

    Raises:
        DataError: nothing is found, no document is left, or too many records are corrupt.
    """
    shards = find_shards(source, split)
    report = report if report is not None else ReadReport()
    for shard in shards:
        yield from _read_shard(shard, report, max_error_rate, text_field, id_field)
    if not report.documents:
        raise DataError(
            f"{source} holds no readable document ({len(shards)} file(s) looked at).",
            f'Each record needs a non-empty "{text_field}"; see the README for the formats.',
        )


def find_shards(source: str | os.PathLike, split: str | None = None) -> list[Path]:
    """List the shard files of a file, glob or folder, sorted by name or in manifest order.

    Raises:
        DataError: nothing is found, or a manifest lacks the split.
    """
    location = files.path(source)
    if location.is_dir() and (location / "manifest.json").exists():
        return _manifest_shards(location, split)
    if location.is_dir() and (location / "documents" / "manifest.json").exists():
        return _manifest_shards(location / "documents", split)
    if location.is_dir():
        found = [p for p in sorted(location.rglob("*")) if p.name.endswith(SUFFIXES)]
        found = [p for p in found if not p.name.startswith(".")]
    elif glob.has_magic(str(source)):
        found = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]
    else:
        found = [location] if location.exists() else []
    if not found:
        raise DataError(
            f"No documents at {source}.",
            f"Give a file, glob or folder with {', '.join(SUFFIXES)}.",
        )
    for shard in found:
        if not shard.name.endswith(SUFFIXES):
            raise DataError(
                f"{shard} has a format that is not known.", f"Known: {', '.join(SUFFIXES)}."
            )
    if split is None:
        return found
    named = [p for p in found if p.name.startswith(split)]
    if not named and split == "train":
        return found
    if not named:
        raise DataError(
            f"{source} has no {split} split.",
            f"Name files {split}-*.jsonl, or run scripts/corpus.py, which makes splits.",
        )
    return named


def write_shard(target: str | os.PathLike, documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write documents to one JSONL shard, atomically and with reproducible bytes.

    Keys that start with an underscore are working notes and are left out.

    Returns:
        {"file", "count", "bytes" (of UTF-8 text), "sha" (of the file), "content" (hash of the
        uncompressed lines)}.
    """
    buffer = io.BytesIO()
    count = size = 0
    for document in documents:
        record = {key: value for key, value in document.items() if not key.startswith("_")}
        buffer.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
        count += 1
        size += len(record["text"].encode("utf-8"))
    name = str(target)
    data = buffer.getvalue()
    content = files.hash_bytes(data)
    if name.endswith(".gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)
    elif name.endswith(".zst"):
        data = _zstandard().ZstdCompressor(level=6).compress(data)
    files.write_atomic(target, data)
    return {
        "file": Path(name).name,
        "count": count,
        "bytes": size,
        "sha": files.hash_bytes(data),
        "content": content,
    }


def _manifest_shards(folder: Path, split: str | None) -> list[Path]:
    manifest = files.read_json(folder / "manifest.json")
    shards = manifest.get("shards", [])
    chosen = [s for s in shards if split is None or s.get("split") == split]
    if not chosen:
        have = sorted({s.get("split", "?") for s in shards})
        raise DataError(
            f"{folder} has no {split or ''} shards (it has {', '.join(have) or 'none'}).",
            "Choose one of these splits or make the corpus again.",
        )
    missing = [s["file"] for s in chosen if not (folder / s["file"]).exists()]
    if missing:
        raise DataError(
            f"{folder}/{missing[0]} is in the manifest but missing.", "Make the corpus again."
        )
    return [folder / s["file"] for s in chosen]


def _read_shard(
    shard: Path, report: ReadReport, max_error_rate: float, text_field: str, id_field: str
) -> Iterator[dict[str, Any]]:
    reader = next(fn for suffix, fn in READERS.items() if shard.name.endswith(suffix))
    stem = shard.name.split(".")[0]
    good = bad = 0
    for where, record, problem in reader(shard):
        text = record.get(text_field) if isinstance(record, dict) else None
        if problem or not isinstance(text, str) or not text.strip():
            problem = problem or f'no text in field "{text_field}"'
            bad += 1
            report.bad(f"{shard}:{where}", problem)
            check_errors(shard, where, problem, bad, good, max_error_rate, final=False)
            continue
        good += 1
        report.documents += 1
        yield _document(record, text, f"{stem}:{where}", stem, text_field, id_field)
    if bad:
        last = report.examples[-1] if report.examples else {"where": str(shard), "reason": "?"}
        where, problem = last["where"].rpartition(":")[2], last["reason"]
        check_errors(shard, where, problem, bad, good, max_error_rate, final=True)


def check_errors(
    shard: str | os.PathLike,
    where: str,
    problem: str,
    bad: int,
    good: int,
    rate: float,
    final: bool,
) -> None:
    """Stop when corrupt records exceed the rate; before the end only once many were seen."""
    total = good + bad
    allowed = max(rate * total, 1 if rate and good else 0)
    if bad <= allowed or not (final or total >= EARLY_CHECK or rate == 0):
        return
    raise DataError(
        f"{shard}, record {where}: {problem}; {bad} of {total} records are corrupt "
        f"(allowed: {rate:.1%}).",
        "Repair the file, or raise source.max_error_rate to skip such records.",
    )


def _document(
    record: dict[str, Any], text: str, fallback: str, stem: str, text_field: str, id_field: str
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": str(record.get(id_field) or fallback),
        "text": text,
        "source": str(record.get("source") or stem),
    }
    for key in ("url", "licence"):
        if record.get(key):
            document[key] = str(record[key])
    if "licence" not in document and record.get("license"):
        document["licence"] = str(record["license"])
    meta = record.get("meta")
    document["meta"] = dict(meta) if isinstance(meta, dict) else {}
    known = {text_field, id_field, "id", "source", "url", "licence", "license", "meta"}
    extra = {k: v for k, v in record.items() if k not in known and _is_scalar(v)}
    document["meta"] = {**extra, **document["meta"]}
    return document


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


# A reader yields (position in the file, record or None, problem or "").
Records = Iterator[tuple[str, Any, str]]


def _read_jsonl(shard: Path) -> Records:
    for number, content, problem in read_lines(shard):
        record = None
        if not problem and not content.strip():
            continue
        try:
            record = None if problem else files.parse_json(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            problem = f"invalid UTF-8 at byte {error.start} of the line"
        except ValueError as error:
            problem = f"not JSON ({error})"
        else:
            problem = problem or ("" if isinstance(record, dict) else "not a JSON object")
        yield str(number), record, problem


def _read_text(shard: Path) -> Records:
    if shard.stat().st_size > MAX_TEXT:
        yield "1", None, f"longer than {MAX_TEXT} bytes"
        return
    try:
        text = shard.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield "1", None, f"invalid UTF-8 at byte {error.start}"
        return
    yield "1", {"text": text, "id": shard.name, "source": shard.parent.name or "text"}, ""


def _read_parquet(shard: Path) -> Records:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise DataError(
            f"{shard} is Parquet, which needs pyarrow.", 'Run: pip install "jax-llm[data]"'
        ) from error
    number = 0
    try:
        with shard.open("rb") as file:
            opened = parquet.ParquetFile(file)
            groups = [opened.metadata.row_group(i) for i in range(opened.num_row_groups)]
            if any(group.total_byte_size > MAX_ROW_GROUP for group in groups):
                yield "1", None, f"a row group claims more than {MAX_ROW_GROUP} bytes"
                return
            for batch in opened.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield str(number), record, ""
    except (ArrowException, OSError) as error:
        yield str(number + 1), None, f"broken Parquet ({str(error).splitlines()[0]})"


def _zstandard() -> Any:
    import zstandard

    return zstandard


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}

# SPDX-License-Identifier: Apache-2.0
"""Where documents come from: each source lists shards of work and reads one of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from llm import files
from llm.corpus import pydocs, tfds, web
from llm.corpus.documents import Document, Plan, Shard
from llm.errors import ConfigError, DataError, unknown
from llm.text import records


class Source(NamedTuple):
    """A way to read documents: `plan(**options)` and `read(shard, report)`."""

    plan: Callable[..., Plan]
    read: Callable[[Shard, records.ReadReport], Iterator[Document]]


def plan_pydocs(
    *,
    packages: tuple[str, ...] = (),
    kinds: tuple[str, ...] = pydocs.KINDS,
    max_documents: int = 0,
    shards: int = 16,
) -> Plan:
    """List the documentation files of this installation, dealt out over shards.

    Args:
        packages: import names ("python" is the standard library); empty means all that
            `pydocs.PACKAGES` lists.
        kinds: which of `pydocs.KINDS`.
        max_documents: about how many documents to read at most (0: all).
        shards: units of work; the result does not depend on the number of workers.
    """
    known = [pydocs.STDLIB, *pydocs.PACKAGES]
    for name in packages:
        if name not in known:
            raise unknown("pydocs package", name, known)
    for kind in kinds:
        if kind not in pydocs.KINDS:
            raise unknown("pydocs kind", kind, pydocs.KINDS)
    entries, missing = pydocs.list_files(list(packages) or known, list(kinds))
    if not entries:
        raise DataError(
            f"None of the pydocs packages is installed: {', '.join(packages)}.",
            "Choose other source.packages.",
        )
    shards = max(1, min(shards, len(entries)))
    hashes = [files.hash_file(entry["path"]) for entry in entries]
    dealt = [
        {
            "entries": entries[i::shards],
            "kinds": list(kinds),
            "limit": -(-max_documents // shards),
            # Content, not location, so that two machines can share a fingerprint.
            "input_hash": files.hash_json(
                [[e["package"], e["module"], h] for e, h in zip(entries, hashes, strict=True)][
                    i::shards
                ]
            ),
        }
        for i in range(shards)
    ]
    notes = {
        "python": pydocs.python_version(),
        "files": len(entries),
        "packages": pydocs.versions(sorted({e["package"] for e in entries})),
        "packages not installed": missing,
    }
    return Plan(dealt, files.hash_json([s["input_hash"] for s in dealt]), notes)


def read_pydocs(shard: Shard, report: records.ReadReport) -> Iterator[Document]:
    """Yield one shard's documentation."""
    for entry in shard["entries"]:
        for document in pydocs.read_file(entry, shard["kinds"]):
            if shard["limit"] and report.documents >= shard["limit"]:
                return
            report.documents += 1
            yield document


def plan_files(
    *,
    path: str = "",
    split: str = "",
    max_documents: int = 0,
    max_error_rate: float = 0.05,
    text_field: str = "text",
    id_field: str = "id",
) -> Plan:
    """List the files of a path, glob or folder: JSONL(.gz/.zst), Parquet or text.

    Args:
        path: what `records.read_documents` accepts.
        split: only this split of a folder with a manifest.
        max_documents: how many documents to read at most from each file (0: all).
        max_error_rate: share of a file's records that may be corrupt.
        text_field, id_field: names of these fields.
    """
    if not path:
        raise ConfigError("source.path is empty.", "Give --config.source.path=FILE_OR_FOLDER.")
    found = records.find_shards(path, split or None)
    fields = {"max_error_rate": max_error_rate, "text_field": text_field, "id_field": id_field}
    shards = [
        {"path": str(f), "fields": fields, "limit": max_documents, "input_hash": files.hash_file(f)}
        for f in found
    ]
    notes = {"path": path, "files": len(found)}
    return Plan(shards, files.hash_json([s["input_hash"] for s in shards]), notes)


def read_files(shard: Shard, report: records.ReadReport) -> Iterator[Document]:
    """Yield one file's documents; a file without any is left to the stage to judge."""
    try:
        for document in records.read_documents(shard["path"], report=report, **shard["fields"]):
            yield document
            if shard["limit"] and report.documents >= shard["limit"]:
                return
    except DataError:
        if report.documents or report.errors:
            raise


SOURCES: dict[str, Source] = {
    "pydocs": Source(plan_pydocs, read_pydocs),
    "files": Source(plan_files, read_files),
    "web": Source(web.plan_web, web.read_web),
    "wiki": Source(web.plan_wiki, web.read_wiki),
    "tfds": Source(tfds.plan_tfds, tfds.read_tfds),
}


def get(name: str) -> Source:
    """Return a source by name.

    Raises:
        ConfigError: it is not in `SOURCES`.
    """
    if name not in SOURCES:
        raise unknown("source", name, SOURCES)
    return SOURCES[name]

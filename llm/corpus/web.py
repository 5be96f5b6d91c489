# SPDX-License-Identifier: Apache-2.0
"""Web archives, folders of pages and wiki dumps as sources of documents."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm import files
from llm.corpus import encoding, html, warc, wiki
from llm.corpus.documents import Document, Plan, Shard
from llm.errors import ConfigError, DataError
from llm.text import records

ARCHIVES = tuple(f".{kind}{end}" for kind in ("warc", "wet") for end in ("", ".gz", ".zst"))
PAGES = (".html", ".htm", ".html.gz", ".htm.gz")
DUMPS = (".xml", ".xml.bz2", ".xml.gz", ".xml.zst")
PAGES_PER_SHARD = 64


class Problem(NamedTuple):
    """Say where a record is corrupt, and how."""

    where: str
    reason: str


def plan_web(
    *,
    path: str = "",
    mode: str = "quality",
    time_limit: float = 10.0,
    max_documents: int = 0,
    max_error_rate: float = 0.05,
) -> Plan:
    """List web archives (WARC, WET; .gz, .zst) and pages (.html, .htm; .gz) of a path.

    Args:
        path: a file, a glob or a folder; the kinds may be mixed.
        mode: how pages become text, see `html.extract_text`; WET records are text already.
        time_limit: seconds that one page may take in quality mode.
        max_documents: how many documents to read at most from each shard (0: all).
        max_error_rate: share of a shard's records that may be corrupt.
    """
    if mode not in html.MODES:
        raise ConfigError(f"source.mode is {mode!r}.", f"Choose one of {', '.join(html.MODES)}.")
    html.require(mode)
    found = _find(path, (*ARCHIVES, *PAGES))
    archives = [[f] for f in found if f.name.endswith(ARCHIVES)]
    pages = [f for f in found if f.name.endswith(PAGES)]
    groups = [pages[i : i + PAGES_PER_SHARD] for i in range(0, len(pages), PAGES_PER_SHARD)]
    fields = {"mode": mode, "time_limit": time_limit, "max_error_rate": max_error_rate}
    return _plan(path, [*archives, *groups], fields, max_documents)


def plan_wiki(
    *,
    path: str = "",
    namespaces: tuple[int, ...] = (0,),
    redirects: bool = False,
    max_documents: int = 0,
    max_error_rate: float = 0.05,
) -> Plan:
    """List MediaWiki XML dumps (.xml; .bz2, .gz, .zst); each file is one shard.

    Args:
        path: a file, a glob or a folder.
        namespaces: numbers of the namespaces to read; 0 holds the articles.
        redirects: read redirects as well.
        max_documents: how many documents to read at most from each file (0: all).
        max_error_rate: share of a file's pages that may be corrupt.
    """
    fields = {
        "namespaces": sorted(int(n) for n in namespaces),
        "redirects": redirects,
        "max_error_rate": max_error_rate,
    }
    return _plan(path, [[f] for f in _find(path, DUMPS)], fields, max_documents)


def read_web(shard: Shard, report: records.ReadReport) -> Iterator[Document]:
    """Yield the pages of a shard as documents, the corrupt records counted in the report."""
    yield from _read(shard, report, _web_file)


def read_wiki(shard: Shard, report: records.ReadReport) -> Iterator[Document]:
    """Yield the articles of a dump as documents."""
    yield from _read(shard, report, _wiki_file)


def _find(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    if not path:
        raise ConfigError("source.path is empty.", "Give --config.source.path=FILE_OR_FOLDER.")
    location = Path(path)
    if location.is_dir():
        found = sorted(p for p in location.rglob("*") if not p.name.startswith("."))
    elif location.exists():
        found = [location]
    else:
        found = sorted(location.parent.glob(location.name)) if location.name else []
    chosen = [p for p in found if p.is_file() and p.name.endswith(suffixes)]
    if not chosen:
        raise DataError(
            f"No {suffixes[0]} or like files at {path}.",
            f"Give a file, glob or folder with {', '.join(suffixes)}.",
        )
    return chosen


def _plan(path: str, groups: list[list[Path]], fields: dict[str, Any], limit: int) -> Plan:
    root = Path(path) if Path(path).is_dir() else Path(path).parent
    shards = []
    for group in groups:
        names = [f.relative_to(root).as_posix() for f in group]
        hashes = [files.hash_file(f) for f in group]
        shards.append(
            {
                "paths": [str(f) for f in group],
                "names": names,
                "fields": fields,
                "limit": limit,
                "input_hash": files.hash_json([names, hashes]),
            }
        )
    notes = {"path": path, "files": sum(map(len, groups))}
    return Plan(shards, files.hash_json([s["input_hash"] for s in shards]), notes)


Reader = Callable[[Path, str, dict[str, Any]], Iterator[Document | Problem]]


def _read(shard: Shard, report: records.ReadReport, reader: Reader) -> Iterator[Document]:
    """Yield documents; count, remember and limit what is corrupt."""
    rate, good, last = shard["fields"]["max_error_rate"], 0, Problem("", "")
    for location, name in zip(shard["paths"], shard["names"], strict=True):
        for outcome in reader(Path(location), name, shard["fields"]):
            if isinstance(outcome, Problem):
                last = outcome
                report.bad(f"{location}:{outcome.where}", outcome.reason)
                records.check_errors(location, *last, report.errors, good, rate, final=False)
                continue
            good += 1
            report.documents += 1
            yield outcome
            if shard["limit"] and good >= shard["limit"]:
                return
    if report.errors:
        where = shard["paths"][-1]
        records.check_errors(where, *last, report.errors, good, rate, final=True)


def _web_file(path: Path, name: str, fields: dict[str, Any]) -> Iterator[Document | Problem]:
    if path.name.endswith(PAGES):
        yield _page_file(path, name, fields)
        return
    for record in warc.records(path):
        where = f"byte {record.offset}"
        if record.problem:
            yield Problem(where, record.problem)
            continue
        page = warc.page_of(record)
        if isinstance(page, str):
            yield Problem(where, page)
        elif page is not None:
            identity = record.headers.get("warc-record-id", "").strip("<>")
            meta = {
                "kind": "wet" if record.headers.get("warc-type") == "conversion" else "page",
                "date": record.headers.get("warc-date", ""),
                "file": name,
                "offset": record.offset,
            }
            yield {
                "id": identity or f"{name}:{record.offset}",
                "text": _text(page.body, page.kind, page.charset, fields),
                "source": "web",
                "url": page.url,
                "meta": meta,
            }


def _page_file(path: Path, name: str, fields: dict[str, Any]) -> Document | Problem:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        return Problem("byte 0", f"the file is broken ({error})")
    return {
        "id": name,
        "text": _text(data, "text/html", "", fields),
        "source": "web",
        "meta": {"kind": "page", "sha": hashlib.sha256(data).hexdigest()[:16]},
    }


def _text(body: bytes, kind: str, charset: str, fields: dict[str, Any]) -> str:
    decoded = encoding.decode(body, charset)
    if kind == "text/plain":
        return decoded
    return html.extract_text(decoded, fields["mode"], time_limit=fields["time_limit"])


def _wiki_file(path: Path, name: str, fields: dict[str, Any]) -> Iterator[Document | Problem]:
    for article in wiki.articles(path):
        if article.problem:
            yield Problem(f"byte {article.offset}", article.problem)
            continue
        found = article.fields
        space = found.get("ns", "0").strip()
        if not space.isdigit() or int(space[:9]) not in fields["namespaces"]:
            continue
        if "redirect" in found and not fields["redirects"]:
            continue
        yield {
            "id": f"{name}:{found.get('id', article.offset)}",
            "text": wiki.plain_text(found.get("text", "")),
            "source": "wiki",
            "meta": {"kind": "article", "title": found.get("title", "")},
        }

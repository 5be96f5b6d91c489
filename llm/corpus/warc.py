# SPDX-License-Identifier: Apache-2.0
"""Read web archives (WARC 1.0 and 1.1, WET): records whole and checked, damage by its offset."""

import base64
import binascii
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm.corpus import streams

HEAD_LIMIT = 1 << 16  # bytes of a record's header
BODY_LIMIT = 1 << 25  # bytes of a record that is kept; larger ones are passed over
PAGE_LIMIT = 1 << 24  # bytes of a decompressed page
DIGESTS = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "md5": hashlib.md5}
PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain")


class Record(NamedTuple):
    """One record: place in the file, headers by lower-case name, body; or what is wrong."""

    offset: int
    headers: dict[str, str]
    body: bytes
    problem: str = ""


class Page(NamedTuple):
    """A fetched page: its address, content type, declared character set and bytes."""

    url: str
    kind: str
    charset: str
    body: bytes


def records(path: Path) -> Iterator[Record]:
    """Yield every record of an archive; damaged ones with a problem, and what follows them."""
    buffer = _Buffer()
    for piece in streams.pieces(path):
        if piece.problem:
            buffer.drop_blank()
            if buffer.size:
                yield Record(buffer.offset(), {}, b"", f"cut off: {piece.problem}")
            else:
                yield Record(piece.offset, {}, b"", piece.problem)
            buffer.clear()
            continue
        buffer.add(piece)
        while (record := _take(buffer)) is not None:
            yield record
    buffer.drop_blank()
    if buffer.size:
        yield Record(buffer.offset(), {}, b"", f"cut off after {buffer.size} bytes")


class _Buffer:
    """Hold decompressed bytes and where in the file they came from."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.marks: list[tuple[int, int, bool]] = []  # position in data, offset, exact
        self.skip = 0  # bytes of an oversized record still to pass over
        self.headers: dict[str, str] | None = None  # of the record at the front, once parsed
        self.body_at = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def add(self, piece: streams.Piece) -> None:
        self.marks.append((len(self.data), piece.offset, piece.exact))
        self.data += piece.data

    def offset(self) -> int:
        """Return the place in the file of the first byte held."""
        position, offset, exact = [mark for mark in self.marks if mark[0] <= 0][-1]
        return offset - position if exact else offset

    def drop(self, count: int) -> None:
        del self.data[:count]
        moved = [(position - count, offset, exact) for position, offset, exact in self.marks]
        behind = [mark for mark in moved if mark[0] <= 0]
        self.marks = behind[-1:] + [mark for mark in moved if mark[0] > 0]
        self.headers = None

    def drop_blank(self) -> None:
        """Pass over the blank lines that end a record."""
        blank = 0
        while blank < len(self.data) and self.data[blank] in b"\r\n":
            blank += 1
        if blank:
            self.drop(blank)

    def clear(self) -> None:
        self.data.clear()
        self.marks.clear()
        self.skip, self.headers = 0, None


def _take(buffer: _Buffer) -> Record | None:
    """Take the next record off the buffer, or return None until more bytes have come."""
    data = buffer.data
    if buffer.skip:
        passed = min(buffer.skip, len(data))
        buffer.skip -= passed
        buffer.drop(passed)
        if buffer.skip:
            return None
    if buffer.headers is None:
        buffer.drop_blank()
        if len(data) < 5:
            return None
        if not data.startswith(b"WARC/"):
            return _resync(buffer)
        end = data.find(b"\r\n\r\n", 0, HEAD_LIMIT)
        if end < 0:
            return _resync(buffer, 5) if len(data) >= HEAD_LIMIT else None
        buffer.headers = parse_headers(bytes(data[:end]))
        buffer.body_at = end + 4
    length = buffer.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit() or len(length) > 12:
        return _resync(buffer, 5)
    stop = buffer.body_at + int(length)
    offset, headers = buffer.offset(), buffer.headers
    if int(length) > BODY_LIMIT:
        buffer.skip = stop
        return Record(offset, headers, b"", f"larger than {BODY_LIMIT} bytes ({length})")
    if len(data) < stop:
        return None
    body = bytes(data[buffer.body_at : stop])
    buffer.drop(stop)
    return Record(offset, headers, body, _digest_problem(headers, body))


def _resync(buffer: _Buffer, start: int = 0) -> Record | None:
    """Pass over bytes that are no record, up to the next one in sight."""
    found = buffer.data.find(b"WARC/1.", start)
    offset = buffer.offset()
    if found < 0:
        if len(buffer.data) < HEAD_LIMIT:
            return None
        found = len(buffer.data) - 8
    buffer.drop(max(found, 1))
    return Record(offset, {}, b"", "not a WARC record")


def parse_headers(block: bytes) -> dict[str, str]:
    """Parse header lines into lower-case names and values; continuation lines are joined."""
    headers: dict[str, str] = {}
    last = ""
    for line in block.decode("utf-8", errors="replace").split("\r\n")[1:]:
        if line[:1] in (" ", "\t") and last:
            headers[last] += " " + line.strip()
            continue
        name, _, value = line.partition(":")
        last = name.strip().lower()
        headers[last] = value.strip()
    return headers


def _digest_problem(headers: dict[str, str], body: bytes) -> str:
    """Compare the block with its digest, where one is stated that we can compute."""
    kind, _, stated = headers.get("warc-block-digest", "").partition(":")
    function = DIGESTS.get(kind.strip().lower())
    stated = stated.strip()
    if function is None or not stated:
        return ""
    raw = function(body, usedforsecurity=False).digest()
    known = (base64.b32encode(raw).decode(), raw.hex(), base64.b64encode(raw).decode())
    if stated.upper() == known[0] or stated.lower() == known[1] or stated == known[2]:
        return ""
    return "the block does not match its digest"


def page_of(record: Record) -> Page | str | None:
    """Return the page of a response or resource, None for other records, or what is wrong."""
    url = record.headers.get("warc-target-uri", "").strip("<>")
    kind = record.headers.get("warc-type", "")
    if kind == "conversion":
        return Page(url, "text/plain", "utf-8", record.body)
    if kind == "resource":
        content_type, _, rest = record.headers.get("content-type", "").lower().partition(";")
        if content_type.strip() not in PAGE_TYPES:
            return None
        return Page(url, content_type.strip(), _charset(rest), record.body)
    if kind != "response" or not url.startswith(("http://", "https://")):
        return None
    head, separator, body = record.body.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"HTTP/"):
        return "no HTTP response in the record"
    status = head.split(b" ", 2)[1:2]
    headers = parse_headers(head)
    content_type, _, rest = headers.get("content-type", "").lower().partition(";")
    if status != [b"200"] or content_type.strip() not in PAGE_TYPES:
        return None
    try:
        body = _transferred(body, headers)
    except (ValueError, OSError, EOFError, zlib.error, binascii.Error) as error:
        return f"the page's encoding is broken ({error})"
    return Page(url, content_type.strip(), _charset(rest), body)


def _charset(parameters: str) -> str:
    _, found, value = parameters.partition("charset=")
    return value.split(";")[0].strip(" \"'")[:40] if found else ""


def _transferred(body: bytes, headers: dict[str, str]) -> bytes:
    """Undo chunks and compression; archives often keep the headers of what they undid."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunked(body)
    encoding = headers.get("content-encoding", "").lower()
    if encoding in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=io.BytesIO(body)).read(PAGE_LIMIT)
    if encoding == "deflate" and not body.lstrip().startswith(b"<"):
        return zlib.decompressobj().decompress(body, PAGE_LIMIT)
    if encoding == "br" and not body.lstrip().startswith(b"<"):
        raise ValueError("Brotli, which is not read")
    return body


def _unchunked(body: bytes) -> bytes:
    """Join HTTP chunks; a body that does not begin with a chunk size was already joined."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at, at + 20)
        size = body[at:end].split(b";")[0].strip() if end >= 0 else b"?"
        if not size or any(c not in b"0123456789abcdefABCDEF" for c in size):
            if not parts:
                return body
            raise ValueError("a chunk has no size")
        length = int(size, 16)
        if not length:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + length])
        if len(parts[-1]) < length:
            raise ValueError("a chunk is cut off")
        at = end + 2 + length + 2

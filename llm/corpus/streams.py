# SPDX-License-Identifier: Apache-2.0
"""Decompress archives piece by piece, and go on behind damage.

Web archives hold one gzip member or Zstandard frame per record. Their usual readers stop without a
word where a file is cut; this one says where, and looks for the next member that begins well.
"""

import bz2
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

CHUNK = 1 << 18  # compressed bytes read at once
FEED = 1 << 11  # compressed bytes decompressed at once: they may unpack to 30,000 times as many
LARGEST_PIECE = 1 << 20  # decompressed bytes handed on at once


class Piece(NamedTuple):
    """Bytes and the place in the file they come from; or a problem and its place.

    exact: offset is the place of the first byte (plain files) rather than of its member.
    """

    offset: int
    data: bytes
    problem: str = ""
    exact: bool = False


class Codec(NamedTuple):
    """A compression: a member's first bytes and how to decompress it."""

    magic: bytes
    open: Callable[[], Any]
    errors: tuple[type[Exception], ...]


def _zstd() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def _codecs() -> dict[str, Codec]:
    import zstandard

    return {
        ".gz": Codec(b"\x1f\x8b\x08", lambda: zlib.decompressobj(31), (zlib.error,)),
        ".zst": Codec(b"\x28\xb5\x2f\xfd", _zstd, (zstandard.ZstdError,)),
        ".bz2": Codec(b"BZh", bz2.BZ2Decompressor, (OSError, EOFError)),
    }


def pieces(path: Path) -> Iterator[Piece]:
    """Yield the decompressed bytes of a plain, .gz, .zst or .bz2 file, with its damage."""
    codec = _codecs().get(path.suffix)
    with path.open("rb") as file:
        if codec:
            yield from _members(file, codec)
            return
        offset = 0
        while data := file.read(CHUNK):
            yield Piece(offset, data, exact=True)
            offset += len(data)


def _members(file: BinaryIO, codec: Codec) -> Iterator[Piece]:
    start = 0
    while start >= 0:
        file.seek(start)
        head = file.read(len(codec.magic))
        if not head:
            return
        if head != codec.magic:
            if head.strip(b"\x00"):  # some writers pad files with zeros
                yield Piece(start, b"", "not the beginning of a compressed member")
            start = _next(file, codec, start + 1)
            continue
        length = yield from _member(file, codec, start)
        start = length if length >= 0 else _next(file, codec, start + 1)


def _member(file: BinaryIO, codec: Codec, start: int) -> Generator[Piece, None, int]:
    """Yield one member's pieces; return where the next one starts, or -1 after damage."""
    file.seek(start)
    engine, at = codec.open(), start
    while chunk := file.read(CHUNK):
        for cut in range(0, len(chunk), FEED):
            part = chunk[cut : cut + FEED]
            at += len(part)
            try:
                data = engine.decompress(part)
            except codec.errors as error:
                yield Piece(start, b"", f"the compressed data are damaged ({error})")
                return -1
            for low in range(0, len(data), LARGEST_PIECE):
                yield Piece(start, data[low : low + LARGEST_PIECE])
            if engine.eof:
                return at - len(engine.unused_data)
    yield Piece(start, b"", "the file ends inside a compressed member")
    return -1


def _next(file: BinaryIO, codec: Codec, start: int) -> int:
    """Return the next place where a member begins that decompresses to something, or -1."""
    file.seek(start)
    window, base = b"", start
    while chunk := file.read(CHUNK):
        window += chunk
        found = window.find(codec.magic)
        while found >= 0:
            try:
                if codec.open().decompress(window[found : found + FEED]):
                    return base + found
            except codec.errors:
                pass
            found = window.find(codec.magic, found + 1)
        keep = len(codec.magic) - 1
        base += len(window) - keep
        window = window[-keep:]
    return -1

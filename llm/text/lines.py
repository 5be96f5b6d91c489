# SPDX-License-Identifier: Apache-2.0
"""Read lines of plain and packed files within bounds: neither a line nor an archive fills memory.

Archives are streamed or read member by member, never unpacked to disk, so no name in them counts.
"""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_LINE = 1 << 26  # bytes
MAX_RATIO = 200  # unpacked over packed bytes; text reaches 3 to 20
FREE = 1 << 28  # unpacked bytes before the ratio counts
WINDOW = 1 << 27  # bytes of history that a zstd frame may ask for
MAX_MEMBER = 1 << 28  # bytes of an archive's member, unpacked


class Line(NamedTuple):
    """One line without its end; where it cannot be read, `problem` says why and it is empty."""

    number: int
    content: bytes
    problem: str


def read_lines(place: Any) -> Iterator[Line]:
    """Yield the lines of a plain, .gz or .zst file; after a broken stream nothing follows.

    Args:
        place: a path (local or remote) whose name tells how it is packed.
    """
    import zstandard

    with place.open("rb") as raw:
        stream: Any = io.BufferedReader(raw, 1 << 20) if isinstance(raw, io.RawIOBase) else raw
        packed = place.name.endswith((".gz", ".zst"))
        if place.name.endswith(".gz"):
            stream = gzip.GzipFile(fileobj=raw)
        elif place.name.endswith(".zst"):
            unpacking = zstandard.ZstdDecompressor(max_window_size=WINDOW)
            stream = io.BufferedReader(
                unpacking.stream_reader(raw, read_across_frames=True), 1 << 20
            )
        number = size = 0
        while True:
            number += 1
            try:
                content = stream.readline(MAX_LINE + 1)
                size += len(content)
                long = len(content) > MAX_LINE and not content.endswith(b"\n")
                while long and content and not content.endswith(b"\n"):
                    content = stream.readline(MAX_LINE)
                    size += len(content)
                    if packed and _bomb(size, raw):
                        break
            except (OSError, EOFError, zlib.error, zstandard.ZstdError, MemoryError) as error:
                yield Line(number, b"", f"the compressed stream is broken ({error})")
                return
            if packed and _bomb(size, raw):
                yield Line(number, b"", f"it unpacks to more than {MAX_RATIO} times its size")
                return
            if long:
                yield Line(number, b"", f"the line is longer than {MAX_LINE} bytes")
            elif content:
                yield Line(number, content.rstrip(b"\r\n"), "")
            else:
                return


def _bomb(size: int, raw: Any) -> bool:
    return size > FREE and size > MAX_RATIO * max(1, raw.tell())


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member of a zip archive, unpacked once more where it is gzip.

    Raises:
        ValueError: it is damaged, or longer than `MAX_MEMBER`.
        KeyError, OSError, zipfile.BadZipFile, EOFError: it is missing or damaged.
    """
    if archive.getinfo(name).file_size > MAX_MEMBER:  # zipfile reads no more than this says
        raise ValueError(f"{name} is longer than {MAX_MEMBER} bytes")
    try:
        content = archive.read(name)
        if not content.startswith(b"\x1f\x8b"):
            return content
        unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_MEMBER + 1)
    except zlib.error as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if len(unpacked) > MAX_MEMBER:
        raise ValueError(f"{name} unpacks to more than {MAX_MEMBER} bytes")
    return unpacked

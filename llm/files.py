# SPDX-License-Identifier: Apache-2.0
"""Paths (local or remote), atomic writes and content hashes."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from llm.errors import DataError, StorageError

MAX_JSON = 1 << 28  # bytes of a file read at once
MAX_DEPTH = 100  # of nested lists and objects


def path(location: str | os.PathLike) -> Any:
    """Return a `pathlib.Path`, or an `etils.epath.Path` for a URL such as `gs://bucket/run`."""
    if "://" in str(location):
        from etils import epath

        return epath.Path(location)
    return Path(location)


def write_atomic(target: str | os.PathLike, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises:
        StorageError: the folder cannot be written or the disk is full.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    destination = path(target)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(destination, Path):
            destination.write_bytes(data)  # object stores replace whole objects
            return
        handle, temporary = tempfile.mkstemp(dir=destination.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, destination)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"Cannot write {target}: {error.strerror or error}.",
            "Free disk space or choose a writable --workdir.",
        ) from error


def write_json(target: str | os.PathLike, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(target, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def read_json(source: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    place = path(source)
    try:
        if place.stat().st_size > MAX_JSON:
            raise DataError(f"{source} is longer than {MAX_JSON} bytes.", "Check what it holds.")
        return parse_json(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{source} does not exist.", "Check the path.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not valid JSON: {error}.", "Make the file again.") from error


def parse_json(text: str) -> Any:
    """Parse JSON that may be hostile.

    Raises:
        ValueError: it is not JSON, or nests deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return value
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def hash_bytes(data: bytes) -> str:
    """Return the 128-bit BLAKE2b hash as 32 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_json(value: Any) -> str:
    """Hash a JSON-able value independently of key order."""
    return hash_bytes(json.dumps(value, sort_keys=True, default=str).encode("utf-8"))


def hash_file(source: str | os.PathLike, chunk: int = 1 << 22) -> str:
    """Hash a file's content without loading it whole."""
    digest = hashlib.blake2b(digest_size=16)
    with path(source).open("rb") as file:
        while block := file.read(chunk):
            digest.update(block)
    return digest.hexdigest()

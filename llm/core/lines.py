# SPDX-License-Identifier: Apache-2.0
"""Text files that grow line by line, also on object stores, which cannot append. No JAX."""

import os
from pathlib import Path
from typing import BinaryIO

from llm import files


class Lines:
    """Append lines to a file.

    Args:
        location: the file; its folder is made when absent.
        limit: bytes after which a new file is begun, the one before kept as `<stem>.1<suffix>`;
            0 for no limit.
        durable: a line has reached the disk when `append` returns, so that a power cut keeps it.
    """

    def __init__(self, location: str | os.PathLike, limit: int = 0, durable: bool = False):
        self.path = files.path(location)
        self._older = self.path.with_name(f"{self.path.stem}.1{self.path.suffix}")
        self._limit = limit
        self._durable = durable
        self._text: str | None = None  # of a remote file, once it is known

    def read(self) -> str:
        """Return the whole text; "" if there is no file."""
        if not self.path.exists():
            return ""
        return self.path.read_text(encoding="utf-8", errors="replace")

    def append(self, line: str) -> None:
        """Add a line.

        Raises:
            OSError: the disk fails.
        """
        text = line + "\n"
        if isinstance(self.path, Path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._limit and self._size() + len(text) > self._limit:
                self.path.replace(self._older)
            with self.path.open("ab+") as file:
                if _is_torn(file):  # by a kill or a full disk: keep the new line apart
                    text = "\n" + text
                file.write(text.encode("utf-8", "replace"))
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            return
        if self._text is None:
            self._text = self.read()
        if self._limit and len(self._text) + len(text) > self._limit:
            self._older.write_text(self._text)
            self._text = ""
        self._text += text
        self.path.write_text(self._text)

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def replace(self, text: str) -> None:
        """Write the whole text anew.

        Raises:
            StorageError: the disk fails.
        """
        files.write_atomic(self.path, text)
        self._text = None


def _is_torn(file: BinaryIO) -> bool:
    """Tell whether a file's last line was not finished."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"

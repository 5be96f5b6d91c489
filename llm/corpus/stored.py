# SPDX-License-Identifier: Apache-2.0
"""Arrays in files, written atomically and read piece by piece."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from llm import files


def save(target: Path, content: np.ndarray | dict[str, np.ndarray]) -> dict[str, Any]:
    """Write one array as .npy or several as .npz; return the file's name and hash."""
    buffer = io.BytesIO()
    if isinstance(content, dict):
        np.savez(buffer, allow_pickle=False, **content)
    else:
        np.save(buffer, content)
    data = buffer.getvalue()
    files.write_atomic(target, data)
    return {"file": target.name, "sha": files.hash_bytes(data)}


class Stored:
    """A .npy file of which rows are read when they are asked for.

    Unlike a memory map it leaves nothing of what was read in this process's memory.
    """

    def __init__(self, place: Path):
        self.place = place
        with place.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            self.shape, _, self.dtype = read[version[0]](file)
            self.begin = file.tell()
        self.row = self.dtype.itemsize * int(np.prod(self.shape[1:]))  # bytes

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, low: int, high: int) -> np.ndarray:
        """Return rows low … high-1, [high - low, …]."""
        number, shape = int(high) - int(low), self.shape[1:]
        count = number * int(np.prod(shape))
        with self.place.open("rb", buffering=0) as file:
            file.seek(self.begin + int(low) * self.row)
            return np.fromfile(file, self.dtype, count).reshape(number, *shape)

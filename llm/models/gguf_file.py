# SPDX-License-Identifier: Apache-2.0
"""The GGUF container: typed metadata and a table of tensors. Nothing in a file is trusted. No JAX.

Every length is checked against what is left of the file before anything is made of it, so a
damaged or hostile file is refused with a message and never costs more memory than its own size.
"""

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.errors import ConfigError, DataError, StorageError
from llm.models import gguf_blocks

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_NAME = 1 << 16  # bytes of a key or of a tensor's name
MAX_TEXT = 1 << 24  # bytes of a string value
MAX_ENTRIES = 1 << 20  # keys, or tensors
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 40

# Code of a value type -> struct format; strings (8) and arrays (9) are read apart.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS[12] = "d"
_STRING, _ARRAY = 8, 9


class Tensor(NamedTuple):
    """Where a tensor lies; `shape` has the fastest dimension last, as NumPy has it."""

    shape: tuple[int, ...]
    format: str
    offset: int
    size: int


class File(NamedTuple):
    """An open file: tensors are read one at a time."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    path: str

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32.

        Raises:
            DataError: it holds infinite numbers or none.
        """
        tensor = self.tensors[name]
        # Not through the mapped file: its pages would count as the process's memory to the end.
        raw = np.fromfile(self.path, np.uint8, tensor.size, offset=tensor.offset)
        if raw.size != tensor.size:
            raise DataError(f"{self.path} is shorter than when it was opened.", "Open it again.")
        weights = gguf_blocks.decode(tensor.format, raw)
        if not np.isfinite(weights).all():
            raise DataError(f"The tensor {name} is not finite.", "Download the file again.")
        return weights.reshape(tensor.shape)


class _Cursor:
    """Reads values off the front of a file, never past its end."""

    def __init__(self, data: np.ndarray, name: str):
        self._data, self._name, self.at = data, name, 0

    def refuse(self, reason: str) -> DataError:
        return DataError(f"{self._name} is damaged: {reason}.", "Download or write it again.")

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise self.refuse(f"it ends at byte {len(self._data)}, inside its header")
        self.at += size
        return self._data[self.at - size : self.at].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self, most: int) -> str:
        size = self.number("Q")
        if size > most:
            raise self.refuse(f"a string of {size} bytes is longer than {most}")
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse("a string is not UTF-8") from error

    def value(self, code: int) -> Any:
        if code == _STRING:
            return self.text(MAX_TEXT)
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if code != _ARRAY:
            raise self.refuse(f"it has the unknown value type {code}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            width = struct.calcsize("<" + _NUMBERS[inner])
            if count > (len(self._data) - self.at) // width:
                raise self.refuse(f"an array of {count} values is longer than the file")
            return np.frombuffer(self.take(count * width), "<" + _NUMBERS[inner]).tolist()
        if inner != _STRING:
            raise self.refuse(f"it has an array of the value type {inner}")
        if count > (len(self._data) - self.at) // 8:
            raise self.refuse(f"an array of {count} strings is longer than the file")
        return [self.text(MAX_TEXT) for _ in range(count)]


def open_file(path: Any) -> File:
    """Open a file and check its whole header; weights are read later, one tensor at a time.

    Raises:
        DataError: it is not GGUF, or damaged.
        ConfigError: a version, byte order or number format that is not supported.
    """
    try:
        data = np.memmap(Path(path), np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Check the path.") from error
    cursor = _Cursor(data, str(path))
    if data[:4].tobytes() != MAGIC:
        raise DataError(f"{path} is not a GGUF file.", "Convert the model to GGUF first.")
    cursor.take(4)
    version = cursor.number("I")
    if version not in VERSIONS:
        what = "is big-endian" if version >> 24 in VERSIONS else f"has version {version}"
        raise ConfigError(
            f"{path} {what}, which is not supported.", "Use little-endian GGUF, version 2 or 3."
        )
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    if max(n_tensors, n_keys) > MAX_ENTRIES:
        raise cursor.refuse(f"it claims {n_tensors} tensors and {n_keys} keys")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.text(MAX_NAME)
        if key in metadata:
            raise cursor.refuse(f"the key {key!r} is there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    return File(metadata, _read_table(cursor, n_tensors, metadata, len(data)), str(path))


def _read_table(
    cursor: _Cursor, count: int, metadata: Mapping[str, Any], end: int
) -> dict[str, Tensor]:
    """Read and check the tensors' names, shapes, formats and places."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment % 8:
        raise cursor.refuse(f"its alignment is {alignment}")
    table: dict[str, Tensor] = {}
    for _ in range(count):
        name = cursor.text(MAX_NAME)
        if name in table:
            raise cursor.refuse(f"the tensor {name!r} is there twice")
        dimensions = cursor.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise cursor.refuse(f"the tensor {name!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        if 0 in shape or math.prod(shape) > MAX_ELEMENTS:
            raise cursor.refuse(f"the tensor {name!r} has the shape {list(shape)}")
        code, offset = cursor.number("I"), cursor.number("Q")
        if code not in gguf_blocks.NAMES:
            raise ConfigError(
                f"The tensor {name!r} has the number format {code}, which is not supported.",
                f"Supported: {', '.join(gguf_blocks.FORMATS)}.",
            )
        form = gguf_blocks.FORMATS[gguf_blocks.NAMES[code]]
        if shape[-1] % form.weights:
            raise cursor.refuse(f"rows of the tensor {name!r} are no whole blocks")
        size = math.prod(shape) // form.weights * form.bytes
        if offset % alignment:
            raise cursor.refuse(f"the tensor {name!r} is not aligned to {alignment} bytes")
        table[name] = Tensor(shape, gguf_blocks.NAMES[code], offset, size)
    start = -(-cursor.at // alignment) * alignment
    for name, tensor in table.items():
        if tensor.offset > end or start + tensor.offset + tensor.size > end:
            raise cursor.refuse(f"the tensor {name!r} ends beyond the file")
    return {name: tensor._replace(offset=start + tensor.offset) for name, tensor in table.items()}


class Output(NamedTuple):
    """A tensor to write; `make` is called when its turn comes."""

    shape: tuple[int, ...]
    format: str
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        form = gguf_blocks.FORMATS[self.format]
        return math.prod(self.shape) // form.weights * form.bytes


def write_file(path: Any, metadata: Mapping[str, Any], tensors: Mapping[str, Output]) -> None:
    """Write a file, one tensor at a time; it appears under its name when it is complete.

    Args:
        metadata: strings, numbers, booleans, or lists of one of these.

    Raises:
        StorageError: the file cannot be written.
    """
    header = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    for key, value in metadata.items():
        header += [_pack_text(key), _pack_value(value)]
    offset = 0
    for name, tensor in tensors.items():
        dimensions = tensor.shape[::-1]
        header.append(_pack_text(name))
        header.append(struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
        header.append(struct.pack("<IQ", gguf_blocks.FORMATS[tensor.format].code, offset))
        offset += _aligned(tensor.size)
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            _write_padded(file, b"".join(header))
            for tensor in tensors.values():
                _write_padded(file, gguf_blocks.encode(tensor.format, tensor.make()))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}.",
            "Free disk space, or write elsewhere.",
        ) from error


def _write_padded(file: Any, data: bytes) -> None:
    file.write(data)
    file.write(b"\0" * (_aligned(len(data)) - len(data)))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pack_text(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _code(value: Any) -> int:
    if isinstance(value, str):
        return _STRING
    if isinstance(value, bool):
        return 7
    if isinstance(value, float):
        return 6
    return 4 if 0 <= value < 2**32 else 11


def _pack_value(value: Any) -> bytes:
    if not isinstance(value, list):
        code = _code(value)
        packed = _pack_text(value) if code == _STRING else struct.pack("<" + _NUMBERS[code], value)
        return struct.pack("<I", code) + packed
    # Arrays of integers are signed 32-bit, as readers expect of token types.
    code = 5 if value and _code(value[0]) in (4, 11) else _code(value[0]) if value else _STRING
    head = struct.pack("<IIQ", _ARRAY, code, len(value))
    return head + _pack_items(code, value)


def _pack_items(code: int, items: Iterable[Any]) -> bytes:
    if code == _STRING:
        return b"".join(_pack_text(item) for item in items)
    listed = list(items)
    return struct.pack(f"<{len(listed)}{_NUMBERS[code]}", *listed)

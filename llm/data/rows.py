# SPDX-License-Identifier: Apache-2.0
"""Rows on disk: fixed-length training rows in `.npy` shards beside a manifest.

A folder holds `<field>-<shard>.npy` files, arrays [rows of the shard, length] in the narrowest type
that holds their values, and `manifest.json`, which is written last. A field whose last word is one
of `packing.SCALARS` has one number per row, [rows]; one of `packing.VECTORS` several per token,
[rows, length, k].
"""

import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm import files
from llm.data import packing
from llm.errors import DataError, StorageError

MANIFEST = "manifest.json"
FORMAT = 1
SHARD_TOKENS = 1 << 24  # tokens per shard and field
Batch = dict[str, np.ndarray]
# What `write_rows` itself puts into a manifest.
COUNTED = (
    "format",
    "rows",
    "length",
    "fields",
    "tokens",
    "weight",
    "segments",
    "fingerprint",
    "shards",
)
_KINDS = {**packing.DTYPES, **packing.SCALARS, **packing.VECTORS}


class RowDataset:
    """Rows that can be read in any order.

    Attributes:
        manifest: what `write_rows` recorded.
        fingerprint: hash of the rows' content.
        fields: names of the arrays of a batch.
        length: tokens per row.
    """

    def __init__(self, folder: Any, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.fields: list[str] = manifest["fields"]
        self.length: int = manifest["length"]
        self._starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])
        self._arrays: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.manifest["rows"]

    def take(self, indices: Any) -> Batch:
        """Return the rows at the indices, in their order: field -> [len(indices), length].

        Raises:
            DataError: an index is out of range, or a shard is damaged.
        """
        wanted = np.asarray(indices, np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise DataError(
                f"A row index is outside 0..{len(self) - 1} of {self.folder}.",
                "The rows were made again with other settings: start a new run.",
            )
        shards = np.searchsorted(self._starts, wanted, side="right") - 1
        batch = {
            name: np.empty((len(wanted), *self._shape(name)), _kind(name)) for name in self.fields
        }
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            local = wanted[chosen] - self._starts[shard]
            for name, values in batch.items():
                values[chosen] = self._array(name, shard)[local]
        return batch

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of one row's field."""
        kind = name.rsplit("_", 1)[-1]
        if kind in packing.SCALARS:
            return ()
        return (self.length, self.manifest["k"]) if kind in packing.VECTORS else (self.length,)

    def verify(self) -> None:
        """Read every shard and compare its hash with the manifest.

        Raises:
            DataError: a shard is missing or differs.
        """
        for shard in self.manifest["shards"]:
            for name, digest in shard["files"].items():
                place = self.folder / name
                if not place.exists() or files.hash_file(place) != digest:
                    raise DataError(f"The rows in {place} are damaged.", "Delete the folder.")

    def _array(self, name: str, shard: int) -> np.ndarray:
        if (name, shard) not in self._arrays:
            place = self.folder / f"{name}-{shard:05d}.npy"
            expected = (self.manifest["shards"][shard]["rows"], *self._shape(name))
            try:
                array = _open_array(place)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"The rows in {place} cannot be read: {error}.",
                    "Delete the folder; it is made again at the next start.",
                ) from error
            if array.shape != expected:
                raise DataError(
                    f"{place} holds {array.shape} values, its manifest says {expected}.",
                    "Delete the folder; it is made again at the next start.",
                )
            self._arrays[name, shard] = array
        return self._arrays[name, shard]


def open_rows(folder: Any) -> RowDataset:
    """Open a folder of rows.

    Raises:
        DataError: there are none, or they were written by another version.
    """
    place = files.path(folder)
    if not (place / MANIFEST).exists():
        raise DataError(
            f"{place} holds no rows (no {MANIFEST}).", "Check the path, or prepare the data first."
        )
    manifest = files.read_json(place / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"The rows in {place} have format {manifest.get('format')}, not {FORMAT}.",
            "Delete the folder; it is made again at the next start.",
        )
    return RowDataset(place, manifest)


def reusable(folder: Any, config_hash: str) -> dict[str, Any] | None:
    """Return the manifest of a finished folder made with the same settings, else None."""
    place = files.path(folder) / MANIFEST
    if not config_hash or not place.exists():
        return None
    manifest = files.read_json(place)
    same = manifest.get("format") == FORMAT and manifest.get("config_hash") == config_hash
    return manifest if same else None


def write_rows(folder: Any, rows: Iterable[Batch], meta: dict[str, Any]) -> dict[str, Any]:
    """Write rows and their manifest; a folder that is there already is replaced.

    Args:
        folder: where to.
        rows: single rows (1-D arrays) or blocks of rows ([n, length]), all of one length; the first
            field is one of tokens.
        meta: further entries of the manifest (tokenizer_hash, config_hash, …); a callable value is
            called once the rows are consumed, for counts that are only known then.

    Returns:
        The manifest.

    Raises:
        DataError: there are no rows.
        StorageError: the folder cannot be written.
    """
    place = files.path(folder)
    scratch = place.parent / f".{place.name}.tmp-{os.getpid()}" if _local(place) else place
    try:
        # A reader must never see old rows with a new manifest, nor the reverse.
        if _local(place):
            _remove(scratch)
        else:
            (place / MANIFEST).unlink(missing_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        manifest = _write(scratch, rows, meta, str(place))
        if _local(place):
            _remove(place)
            os.replace(scratch, place)
    except OSError as error:
        raise StorageError(
            f"Cannot write rows to {place}: {error.strerror or error}.",
            "Free disk space or choose a writable folder.",
        ) from error
    finally:
        if _local(place):
            _remove(scratch)
    return manifest


def pad_batch(batch: Batch, size: int) -> Batch:
    """Fill a batch up to `size` rows with zeros (padding segments, weight 0)."""
    missing = size - len(next(iter(batch.values())))
    return {
        k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)]) if missing else v
        for k, v in batch.items()
    }


def extended(
    dataset: RowDataset,
    suffix: str,
    key: str,
    fields: Callable[[Batch], Batch],
    batch_size: int,
    **meta: Any,
) -> RowDataset:
    """Return the rows with more fields, written beside them, or found there again.

    Args:
        dataset: the rows.
        suffix: of the new folder's name.
        key: identifies what the fields are computed with.
        fields: a batch of `batch_size` rows, the last one padded -> more fields of it.
        batch_size: rows at a time.
        meta: further entries of the manifest.
    """
    folder = dataset.folder.with_name(f"{dataset.folder.name}-{suffix}")
    made = files.hash_json([1, dataset.fingerprint, key, meta])

    def blocks() -> Iterator[Batch]:
        for start in range(0, len(dataset), batch_size):
            batch = dataset.take(np.arange(start, min(start + batch_size, len(dataset))))
            size = len(next(iter(batch.values())))
            more = fields(pad_batch(batch, batch_size))
            yield batch | {name: values[:size] for name, values in more.items()}

    if reusable(folder, made) is None:
        kept = {k: v for k, v in dataset.manifest.items() if k not in COUNTED}
        write_rows(folder, blocks(), {**kept, **meta, "config_hash": made})
    return open_rows(folder)


def _write(scratch: Any, rows: Iterable[Batch], meta: dict[str, Any], name: str) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    counts = {"tokens": 0, "weight": 0.0, "segments": 0}
    length, fields = 0, [""]
    for block in _shards(rows):
        first = next(iter(block.values()))
        length, fields = first.shape[1], list(block)
        for field, values in block.items():
            if field.endswith("segments"):
                counts["tokens"] += int((values > 0).sum())
                counts["segments"] += int(values.max(axis=1).sum())
            elif field.endswith("weights"):
                counts["weight"] += float(values.sum(dtype=np.float64))
        hashes = {}
        for field, values in block.items():
            target = f"{field}-{len(shards):05d}.npy"
            content = io.BytesIO()
            np.save(content, narrow(values), allow_pickle=False)
            hashes[target] = files.hash_bytes(content.getvalue())
            files.write_atomic(scratch / target, content.getvalue())
        shards.append({"rows": len(first), "files": hashes})
    if not shards:
        raise DataError(f"There is nothing to write to {name}: no rows.", "Check the input data.")
    total = sum(shard["rows"] for shard in shards)
    manifest = {
        "format": FORMAT,
        "rows": total,
        "length": length,
        "fields": fields,
        **counts,
        **{key: value() if callable(value) else value for key, value in meta.items()},
        "fingerprint": files.hash_json([length, [shard["files"] for shard in shards]]),
        "shards": shards,
    }
    files.write_json(scratch / MANIFEST, manifest)
    return manifest


def _shards(rows: Iterable[Batch]) -> Iterator[Batch]:
    """Gather rows or blocks of rows into blocks of one shard's size."""
    waiting: list[Batch] = []
    count = 0
    for item in rows:
        alone = np.ndim(next(iter(item.values()))) == 1
        block = {
            name: np.asarray(values)[None] if alone else values for name, values in item.items()
        }
        first = next(iter(block.values()))
        limit = max(1, SHARD_TOKENS // first.shape[1])
        start = 0
        while start < len(first):
            part = {name: values[start : start + limit - count] for name, values in block.items()}
            taken = len(next(iter(part.values())))
            waiting.append(part)
            start, count = start + taken, count + taken
            if count == limit:
                yield _stack(waiting)
                waiting, count = [], 0
    if waiting:
        yield _stack(waiting)


def _stack(blocks: list[Batch]) -> Batch:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def narrow(values: np.ndarray) -> np.ndarray:
    """Return the values in the narrowest of uint8, uint16, int32 or float32 that holds them."""
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    whole = values.dtype.kind != "f" or bool((values == np.floor(values)).all())
    if whole and low >= 0 and high < 1 << 16:
        return values.astype(np.uint8 if high < 256 else np.uint16)
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)


def _kind(field: str) -> Any:
    return _KINDS[field.rsplit("_", 1)[-1]]


def _open_array(place: Any) -> np.ndarray:
    if isinstance(place, Path):
        return np.load(place, mmap_mode="r", allow_pickle=False)
    return np.load(io.BytesIO(place.read_bytes()), allow_pickle=False)


def _local(place: Any) -> bool:
    return isinstance(place, Path)


def _remove(folder: Path) -> None:
    """Delete a folder of rows; anything else is somebody's data and stays.

    Raises:
        StorageError: the folder holds other files than rows.
    """
    if not folder.exists():
        return
    strange = [
        item.name for item in folder.iterdir() if item.suffix != ".npy" and item.name != MANIFEST
    ]
    if strange and not all(name.startswith(".tmp-") for name in strange):
        raise StorageError(
            f"{folder} holds other files than rows ({sorted(strange)[0]}).",
            "Choose another folder for the rows.",
        )
    shutil.rmtree(folder)

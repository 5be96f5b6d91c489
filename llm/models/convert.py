# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders in and out, one tensor at a time: safetensors only, never pickle.

Import fills one stacked leaf of ours from the layers' tensors, places it, and goes on; export
writes tensors in file order. The host never holds more than one leaf beside the result.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm import files
from llm.core import trees
from llm.errors import ConfigError, DataError
from llm.models import hf_config, layouts
from llm.models.config import TransformerConfig
from llm.models.families import IGNORED, ROWS, Row

Get = Callable[[str], np.ndarray]
SHARD_BYTES = 5 * 1000**3


class Tensors(NamedTuple):
    """Named arrays read on demand."""

    shapes: Mapping[str, tuple[int, ...]]
    get: Get


# --- Reading safetensors -----------------------------------------------------------------------


def open_folder(folder: Any) -> Tensors:
    """Open a folder's safetensors files (one, or shards with an index) without reading weights.

    Raises:
        DataError: no such files, or a file is damaged.
    """
    import safetensors

    folder = Path(folder)
    paths = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        paths = [folder / name for name in _shards(index)]
    if not paths:
        old = sorted(path.name for path in folder.glob("*.bin"))
        found = f"; {old[0]} is a pickle, which is never loaded" if old else ""
        raise DataError(
            f"{folder} holds no .safetensors file{found}.", "Use a model saved as safetensors."
        )
    entries: dict[str, tuple[Path, np.dtype, tuple[int, ...], int]] = {}
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="numpy") as opened:  # checks the header
                names = list(opened.keys())
            start, header = _read_header(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(
                f"{path} cannot be read as safetensors: {error}.", "Download it again."
            ) from error
        for name in names:
            entry = header[name]
            if entry["dtype"] not in _DTYPES:
                raise DataError(
                    f"Tensor {name} of {path} is stored as {entry['dtype']}.",
                    f"Supported: {', '.join(_DTYPES)}.",
                )
            at = start + entry["data_offsets"][0]
            kind = np.dtype(_DTYPES[entry["dtype"]])
            entries[name] = (path, kind, tuple(entry["shape"]), at)
    return Tensors(
        {name: shape for name, (_, _, shape, _) in entries.items()},
        lambda name: _read_array(*entries[name]),
    )


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index lists."""
    listed = files.read_json(index)
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise DataError(f"{index} has no weight_map of file names.", "Download the model again.")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise DataError(f"{index} points outside its folder.", "Download the model again.")
    return names


_DTYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8},
    "BOOL": np.bool_,
}


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where a checked file's data begins, and its header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + size, json.loads(file.read(size))


def _read_array(path: Path, kind: np.dtype, shape: tuple[int, ...], at: int) -> np.ndarray:
    """Read one tensor; a mapped file would count towards the process's memory to its end."""
    array = np.empty(shape, kind)
    with path.open("rb") as file:
        file.seek(at)
        got = file.readinto(array.reshape(-1).view(np.uint8).data)
    if got != array.nbytes:
        raise DataError(f"{path} is shorter than when it was opened.", "Download it again.")
    return array


# --- Import ------------------------------------------------------------------------------------


def load_hf(
    folder: Any,
    dtype: str = "float32",
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> tuple[TransformerConfig, dict[str, Any]]:
    """Read a Hugging Face folder (config.json and safetensors).

    Args:
        folder: a local directory.
        dtype: what the parameters become.
        place: puts one finished leaf ("decoder/layers/mlp/up/kernel", array) where it belongs,
            for example onto a mesh; by default it becomes a JAX array on the default device.

    Returns:
        (config, nested dict of parameters).

    Raises:
        ConfigError: an unsupported family or feature.
        DataError: missing, surplus, misshapen or damaged tensors.
    """
    tensors = open_folder(folder)
    raw = files.read_json(Path(folder) / "config.json")
    if not isinstance(raw, dict):
        raise DataError(f"{folder}/config.json is not an object.", "Download the model again.")
    config = hf_config.read(raw, tensors.shapes)
    params = import_tensors(tensors, config, raw["model_type"], dtype, place)
    return config, params


def import_tensors(
    tensors: Tensors,
    config: TransformerConfig,
    family: str,
    dtype: str = "float32",
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """Rename, reshape and stack a family's tensors into our parameters.

    Raises:
        DataError: a tensor is missing, surplus or has another shape.
    """
    rows = ROWS[family](config)
    sizes = layouts.sizes(config)
    names = _find_names(rows, config, tensors)
    put = place or (lambda _, leaf: jax.device_put(leaf))
    leaves: dict[str, Any] = {}
    for row in rows:
        leaf = _fill(row, config, sizes, names, tensors, dtype)
        # Waiting keeps the host from holding several leaves that are still on their way.
        leaves[row.ours] = jax.block_until_ready(put(row.ours, leaf))
        del leaf
    return trees.unflatten(leaves)


def _fill(
    row: Row,
    config: TransformerConfig,
    sizes: Mapping[str, int],
    names: Mapping[str, str],
    tensors: Tensors,
    dtype: str,
) -> np.ndarray:
    """Read all layers' tensors of a row into one leaf."""
    expected = layouts.shape(row.their_layout, sizes)
    places = list(layouts.expand(row, config))
    for _, theirs in places:  # all, before memory is taken for them
        actual = names[theirs]
        if tensors.shapes[actual] != expected:
            raise DataError(
                f"Tensor {actual} has shape {tensors.shapes[actual]}, not {expected}.",
                "The weights do not belong to this config.json.",
            )
    shape = (*layouts.stacked(row, config), *layouts.shape(row.our_layout, sizes))
    leaf = aligned(shape, np.dtype(jnp.dtype(dtype)))
    for index, theirs in places:
        leaf[index] = layouts.to_ours(tensors.get(names[theirs]), row, sizes)
    return leaf


def aligned(shape: tuple[int, ...], kind: np.dtype) -> np.ndarray:
    """Return an empty array that JAX on CPU can use where it lies, instead of a copy."""
    size = int(np.prod(shape)) * kind.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(kind).reshape(shape)


def _find_names(rows: list[Row], config: TransformerConfig, tensors: Tensors) -> dict[str, str]:
    """Match wanted names to those in the files; some files leave out the model prefix."""
    for row in rows:
        if (count := math.prod(layouts.stacked(row, config))) > len(tensors.shapes):
            raise DataError(
                f"config.json says {count} times {row.theirs}; the files hold "
                f"{len(tensors.shapes)} tensors.",
                "The weights do not belong to this config.json.",
            )
    wanted = [theirs for row in rows for _, theirs in layouts.expand(row, config)]
    found = {}
    for name in tensors.shapes:
        plain = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        found[plain] = name
    names: dict[str, str] = {}
    for name in wanted:
        short = name.split(".", 1)[-1]
        key = name if name in found else short
        if key not in found:
            raise DataError(
                f"Tensor {name} is missing.", "Use the model's complete folder, with its head."
            )
        names[name] = found[key]
    tied = ("lm_head.weight", "embed_out.weight") if config.tied_embeddings else ()
    surplus = set(found.values()) - set(names.values()) - set(tied)
    for name in sorted(surplus):
        if not any(re.fullmatch(pattern, name) for pattern in IGNORED):
            raise DataError(
                f"Tensor {name} has no place in this model.",
                "The weights hold a feature that config.json does not say or we do not know.",
            )
    return names


# --- Export ------------------------------------------------------------------------------------


def save_hf(
    config: TransformerConfig,
    params: Mapping[str, Any],
    folder: Any,
    *,
    family: str = "",
    token_ids: Mapping[str, int | None] | None = None,
    shard: int = SHARD_BYTES,
) -> None:
    """Write config.json and safetensors that `transformers` opens.

    Args:
        family: a model_type to write it as; "" takes the first that computes this model.
        token_ids: `bos_token_id` and the like for config.json, where the family says nothing else.
        shard: bytes per file, except that a tensor is never cut; one file needs no index.

    Raises:
        ConfigError: no Hugging Face family computes this model.
    """
    raw = hf_config.write(config, family)
    raw |= {name: i for name, i in (token_ids or {}).items() if raw.get(name) is None}
    entries = export_entries(config, params, raw["model_type"])
    raw["dtype"] = next(iter(entries.values())).dtype
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    held = 0
    for name, entry in entries.items():
        if shards[-1] and held + entry.size > shard:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += entry.size
    placed = {}
    for i, names in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, {name: entries[name] for name in names})
        placed.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        total = sum(entry.size for entry in entries.values())
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        files.write_json(folder / "model.safetensors.index.json", index)
    files.write_json(folder / "config.json", raw)


class Entry(NamedTuple):
    """One tensor to write."""

    shape: tuple[int, ...]
    dtype: str
    size: int  # bytes
    make: Callable[[], np.ndarray]


def export_entries(
    config: TransformerConfig, params: Mapping[str, Any], family: str
) -> dict[str, Entry]:
    """List a family's tensors with what makes each from our parameters."""
    leaves = trees.flatten(params)
    sizes = layouts.sizes(config)
    rows = ROWS[family](config)
    missing = sorted({row.ours for row in rows} - set(leaves))
    surplus = sorted(set(leaves) - {row.ours for row in rows})
    if missing or surplus:
        what = f"lack {missing[0]}" if missing else f"have a further leaf {surplus[0]}"
        raise ConfigError(
            f"The parameters {what}, so they are no plain {family} model.",
            "Merge or remove adapters and extra heads first.",
        )
    parts: dict[str, list[tuple[Row, tuple[int, ...]]]] = {}
    for row in rows:
        for index, theirs in layouts.expand(row, config):
            parts.setdefault(theirs, []).append((row, index))

    def entry(pieces: list[tuple[Row, tuple[int, ...]]]) -> Entry:
        shape = layouts.shape(pieces[0][0].their_layout, sizes)
        dtype = jnp.dtype(leaves[pieces[0][0].ours].dtype)

        def make() -> np.ndarray:
            arrays = [(row, _at(leaves[row.ours], index)) for row, index in pieces]
            return layouts.to_theirs(arrays, sizes)

        return Entry(shape, dtype.name, int(np.prod(shape)) * dtype.itemsize, make)

    return {name: entry(pieces) for name, pieces in parts.items()}


def _at(leaf: Any, index: tuple[int, ...]) -> np.ndarray:
    """Bring one layer's slice of a leaf to the host."""
    for i in index:
        dynamic = isinstance(leaf, jax.Array)
        leaf = jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False) if dynamic else leaf[i]
    return np.asarray(leaf)


_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def _write_file(path: Path, entries: Mapping[str, Entry]) -> None:
    """Stream a safetensors file: eight bytes of header length, JSON header, then the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": _CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for chunk in _chunks(entries):
            file.write(chunk)
    temporary.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one safetensors file."""

    def entry(x: np.ndarray) -> Entry:
        return Entry(x.shape, x.dtype.name, x.nbytes, lambda: x)

    _write_file(path, {name: entry(x) for name, x in arrays.items()})


def _chunks(entries: Mapping[str, Entry]) -> Iterator[memoryview]:
    for entry in entries.values():
        yield np.ascontiguousarray(entry.make()).reshape(-1).view(np.uint8).data

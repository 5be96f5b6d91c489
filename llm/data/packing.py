# SPDX-License-Identifier: Apache-2.0
"""Packing examples into rows of one fixed length. Pure NumPy.

An example is a dict of 1-D arrays of one length: "tokens", "targets" and "weights" (int32, int32,
float32). A row holds the same fields plus "segments" (0 = padding, examples 1, 2, …) and
"positions" (from 0 in every segment), each of the row's length.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from llm.errors import DataError

DTYPES: dict[str, Any] = {
    "tokens": np.int32,
    "targets": np.int32,
    "weights": np.float32,
    "segments": np.int32,
    "positions": np.int32,
}
# Fields of one number per row, whatever its length: see `llm.data.rows`.
SCALARS: dict[str, Any] = {
    "margins": np.float32,
    "labels": np.int32,
    "logps": np.float32,
}
# Fields of several numbers per token, most likely first: a teacher's tokens and log-probabilities.
VECTORS: dict[str, Any] = {"topids": np.int32, "toplogps": np.float32}
CONTENT = ("tokens", "targets", "weights")
FILL_BUFFER = 1 << 20  # tokens gathered before rows are cut from them
FIT_BUFFER = 2048  # examples sorted together for the best fit
Row = dict[str, np.ndarray]


def pack(examples: Iterable[Row], length: int, split_long: bool = True) -> Iterator[Row]:
    """Yield rows of `length` tokens that hold the examples.

    Args:
        examples: dicts of 1-D "tokens", "targets", "weights"; empty ones are passed over.
        length: tokens per row.
        split_long: fill rows one after the other and cut an example wherever a row ends (text); the
            rest starts a new segment. False keeps every example whole and places it in the row with
            the least room that still holds it (chats).

    Raises:
        DataError: an example does not fit although examples must stay whole.
    """
    for block in pack_blocks(examples, length, split_long):
        for index in range(len(block["tokens"])):
            yield {name: values[index] for name, values in block.items()}


def pack_blocks(
    examples: Iterable[Row], length: int, split_long: bool = True, buffer: int = FILL_BUFFER
) -> Iterator[Row]:
    """Yield the same rows as `pack`, many at a time: arrays [rows, length].

    Args:
        buffer: tokens to gather before rows are cut, which only changes the size of the blocks.
    """
    if length < 1:
        raise DataError(f"Rows cannot have {length} tokens.", "Set data.length to at least 1.")
    return _fill(examples, length, buffer) if split_long else _fit(examples, length)


def _fill(examples: Iterable[Row], length: int, buffer: int) -> Iterator[Row]:
    """Fill rows in order from one stream of tokens."""
    waiting: list[Row] = []
    sizes: list[int] = []
    size = 0
    for example in examples:
        count = len(example["tokens"])
        if not count:
            continue
        waiting.append(example)
        sizes.append(count)
        size += count
        if size >= max(buffer, length):
            block, waiting, sizes = _cut(waiting, sizes, length, size // length)
            size = sum(sizes)
            yield block
    if size:
        yield _cut(waiting, sizes, length, -(-size // length))[0]


def _cut(
    waiting: list[Row], sizes: list[int], length: int, rows: int
) -> tuple[Row, list[Row], list[int]]:
    """Cut `rows` rows from the front of the waiting examples; the last row may need padding.

    Returns:
        The rows, and the examples that are left with their sizes.
    """
    total = rows * length
    ends = np.cumsum(sizes)
    size = int(ends[-1])
    stream = {name: _join(waiting, name) for name in CONTENT}
    place = np.arange(total)
    row_start = place - place % length
    owner = np.searchsorted(ends, place, side="right")  # which example a token belongs to
    starts = ends - np.asarray(sizes)
    padding = owner >= len(sizes)
    owner = np.minimum(owner, len(sizes) - 1)
    segments = owner - owner[row_start] + 1
    positions = place - np.maximum(starts[owner], row_start)
    segments[padding] = 0
    positions[padding] = 0
    missing = max(0, total - size)
    block = {name: np.pad(values[:total], (0, missing)) for name, values in stream.items()}
    block |= {"segments": segments, "positions": positions}
    shaped = {name: block[name].astype(kind).reshape(rows, length) for name, kind in DTYPES.items()}
    left: list[Row] = []
    for index in range(int(np.searchsorted(ends, total, side="right")), len(sizes)):
        used = max(0, total - int(starts[index]))  # only the first can be cut
        left.append({name: values[used:] for name, values in waiting[index].items()})
    return shaped, left, [len(example["tokens"]) for example in left]


def _join(examples: list[Row], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(example[name], DTYPES[name]) for example in examples])


def _fit(examples: Iterable[Row], length: int) -> Iterator[Row]:
    """Place whole examples by best fit, longest first, within buffers of examples."""
    waiting: list[Row] = []
    for example in examples:
        count = len(example["tokens"])
        if count > length:
            raise DataError(
                f"An example of {count} tokens does not fit in a row of {length}.",
                "Raise data.length, or truncate or drop long examples.",
            )
        if count:
            waiting.append(example)
        if len(waiting) == FIT_BUFFER:
            yield _place(waiting, length)
            waiting = []
    if waiting:
        yield _place(waiting, length)


def _place(examples: list[Row], length: int) -> Row:
    rows = best_fit([len(example["tokens"]) for example in examples], length)
    block = {name: np.zeros((len(rows), length), kind) for name, kind in DTYPES.items()}
    for index, members in enumerate(rows):
        start = 0
        for segment, member in enumerate(members, start=1):
            example = examples[member]
            end = start + len(example["tokens"])
            for name in CONTENT:
                block[name][index, start:end] = example[name]
            block["segments"][index, start:end] = segment
            block["positions"][index, start:end] = np.arange(end - start)
            start = end
    return block


def best_fit(sizes: list[int], length: int) -> list[list[int]]:
    """Assign sizes to bins: longest first, each to the fullest bin that still has room.

    Args:
        sizes: sizes from 1 to `length`.
        length: capacity of a bin.

    Returns:
        For every bin the indices of its members, in the order of their placing.
    """
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # room -> bins that have it
    rooms = 0  # bit r is set where a bin has room r: the lowest set bit >= size is the best fit
    for index in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        size = sizes[index]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room = length
            chosen = len(bins)
            bins.append([])
        bins[chosen].append(index)
        left = room - size
        if left:
            with_room[left].append(chosen)
            rooms |= 1 << left
    return bins

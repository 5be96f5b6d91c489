# SPDX-License-Identifier: Apache-2.0
"""Packing against loops that are too simple to be wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import packing
from llm.errors import DataError


def make(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "tokens": rng.integers(1, 99, size).astype(np.int32),
            "targets": rng.integers(1, 99, size).astype(np.int32),
            "weights": rng.random(size).astype(np.float32),
        }
        for size in sizes
    ]


def fill_by_loop(examples, length):
    """Write token after token; a new row starts whenever one is full."""
    rows = []
    for example in examples:
        segment = position = -1
        for place in range(len(example["tokens"])):
            if not rows or len(rows[-1]) == length:
                rows.append([])
                segment = -1
            if segment < 0:
                segment = max((token[3] for token in rows[-1]), default=0) + 1
                position = 0
            values = [example[name][place] for name in packing.CONTENT]
            rows[-1].append((*values, segment, position))
            position += 1
    blank = (0, 0, 0.0, 0, 0)
    return [row + [blank] * (length - len(row)) for row in rows]


sizes_strategy = st.lists(st.integers(0, 30), max_size=12)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(sizes_strategy, st.integers(1, 24), st.integers(1, 60))
def test_filling_equals_the_loop(sizes, length, buffer):
    examples = make(sizes)
    expected = fill_by_loop(examples, length)
    rows = list(packing.pack(examples, length))
    assert len(rows) == len(expected)
    for row, loop in zip(rows, expected, strict=True):
        for column, (name, kind) in enumerate(packing.DTYPES.items()):
            assert row[name].dtype == kind
            np.testing.assert_array_equal(row[name], [token[column] for token in loop])
    blocks = list(packing.pack_blocks(make(sizes), length, buffer=buffer))
    for name in packing.DTYPES:  # the buffer changes nothing
        joined = [values for block in blocks for values in block[name]]
        np.testing.assert_array_equal(joined, [row[name] for row in rows])


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 24), max_size=40))
def test_fitting_keeps_every_example_whole(sizes):
    length = 24
    examples = make(sizes)
    found = []
    for row in packing.pack(examples, length, split_long=False):
        count = row["segments"].max()
        used = row["segments"] > 0
        np.testing.assert_array_equal(np.sort(row["segments"][used]), row["segments"][used])
        assert not row["tokens"][~used].any() and not row["weights"][~used].any()
        for segment in range(1, count + 1):
            mine = row["segments"] == segment
            np.testing.assert_array_equal(row["positions"][mine], np.arange(mine.sum()))
            found.append(tuple(row[name][mine].tobytes() for name in packing.CONTENT))
    wanted = [tuple(e[name].tobytes() for name in packing.CONTENT) for e in examples]
    assert sorted(found) == sorted(item for item in wanted if item[0])


def best_fit_by_loop(sizes, length):
    bins = []
    for index in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        rooms = [(length - sum(sizes[i] for i in members)) for members in bins]
        fitting = [room for room in rooms if room >= sizes[index]]
        if fitting:
            bins[max(i for i, room in enumerate(rooms) if room == min(fitting))].append(index)
        else:
            bins.append([index])
    return bins


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 30), max_size=40))
def test_best_fit_against_a_search_of_all_bins(sizes):
    bins = packing.best_fit(sizes, 30)
    loop = best_fit_by_loop(sizes, 30)
    assert sorted(i for members in bins for i in members) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in members) <= 30 for members in bins)
    # Equally full bins may be taken in another order, which changes no bin's fill.
    assert sorted(sum(sizes[i] for i in b) for b in bins) == sorted(
        sum(sizes[i] for i in b) for b in loop
    )


def test_rows_are_full():
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 400, 3000).tolist()
    rows = sum(len(b["tokens"]) for b in packing.pack_blocks(make(sizes), 512, split_long=False))
    assert sum(sizes) / (rows * 512) > 0.98
    rows = sum(len(block["tokens"]) for block in packing.pack_blocks(make(sizes), 512))
    assert rows == -(-sum(sizes) // 512)


def test_examples_that_cannot_fit_are_refused():
    with pytest.raises(DataError, match="25 tokens"):
        list(packing.pack(make([25]), 24, split_long=False))
    with pytest.raises(DataError, match=r"data\.length"):
        list(packing.pack(make([5]), 0))

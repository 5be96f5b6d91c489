# SPDX-License-Identifier: Apache-2.0
"""The order of training: a pure function of the step, equal under every split."""

import functools
import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest

from llm.data import feed, permutation, rows
from llm.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Rows whose first token says which row of which dataset they are."""
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for number, (name, size) in enumerate([("a", 50), ("b", 7), ("c", 1000)]):
        tokens = np.zeros((size, 4), np.int32)
        tokens[:, 0], tokens[:, 1] = np.arange(size), number
        block = {key: np.ones((size, 4), np.int32) for key in ("targets", "segments", "positions")}
        block |= {"tokens": tokens, "weights": np.ones((size, 4), np.float32)}
        rows.write_rows(folder / name, [block], {})
        found[name] = rows.open_rows(folder / name)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_permutation_is_a_bijection(size):
    orders = set()
    for seed in range(3):
        order = permutation.permute(np.arange(size), size, permutation.key("x", seed))
        assert sorted(order.tolist()) == list(range(size))
        alone = [
            int(permutation.permute([i], size, permutation.key("x", seed))[0])
            for i in (0, size - 1)
        ]
        assert alone == [order[0], order[-1]]
        orders.add(tuple(order.tolist()))
    assert len(orders) == (3 if size > 10 else len(orders))


def test_permutation_of_a_huge_range_needs_no_memory():
    size = 10**15
    values = permutation.permute(np.arange(10**5), size, permutation.key(1))
    assert len(set(values.tolist())) == 10**5
    assert values.min() >= 0 and values.max() < size
    assert abs(values.mean() / size - 0.5) < 0.01


def test_permutation_looks_random():
    """Every index lands everywhere about equally often (chi-square, 15 degrees of freedom)."""
    size, seeds = 16, 4000
    keys = [permutation.key("u", seed) for seed in range(seeds)]
    table = np.stack([permutation.permute(np.arange(size), size, key) for key in keys])
    for place in range(size):
        counts = np.bincount(table[:, place], minlength=size)
        assert ((counts - seeds / size) ** 2 / (seeds / size)).sum() < 45
    steps = np.diff(permutation.permute(np.arange(10**5), 10**5, keys[0]))
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.02  # as for random order


@pytest.mark.parametrize("weights", [None, {"a": 0.5, "b": 0.2, "c": 0.3}])
def test_host_slices_make_the_global_batch(datasets, weights):
    make = functools.partial(feed.Feed, datasets, weights, seed=3, batch_size=24)
    whole = make()
    for step in (0, 1, 5, 1000):
        batch = whole.batch(step)
        for hosts in (2, 4, 8):
            parts = [make(host_index=h, host_count=hosts).batch(step) for h in range(hosts)]
            for name, values in batch.items():
                joined = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(joined, values)
        ids = [("abc"[n], i) for i, n in batch["tokens"][:, :2].tolist()]
        assert ids == whole.ids(step)


def test_every_row_once_per_epoch_in_another_order(datasets):
    source = feed.Feed(datasets, seed=0, batch_size=7)
    ids = list(itertools.chain.from_iterable(source.ids(step) for step in range(302)))
    everything = {(name, row) for name, data in datasets.items() for row in range(len(data))}
    first, second = ids[:1057], ids[1057:2114]
    assert set(first) == set(second) == everything and len(everything) == 1057
    assert first != second
    assert source.steps_per_epoch == 151 and source.steps is None
    other = feed.Feed(datasets, seed=1, batch_size=7)
    assert other.ids(0) != source.ids(0)
    ordered = feed.Feed({"a": datasets["a"]}, seed=0, batch_size=10, shuffle=False)
    assert [row for _, row in ordered.ids(1)] == list(range(10, 20))


def test_mixture_shares_are_exact(datasets):
    weights = {"a": 1, "b": 0.013, "c": 2.5}
    source = feed.Feed(datasets, weights, seed=5, batch_size=512)
    total = Counter()
    drawn = {name: [] for name in datasets}
    for step in range(40):
        for name, row in source.ids(step):
            total[name] += 1
            drawn[name].append(row)
        done = (step + 1) * 512
        for name, weight in weights.items():  # blocks of 1,024 draws: within one at their ends
            slack = 1 if done % 1024 == 0 else 512
            assert abs(total[name] - done * weight / 3.513) <= slack
    for name, data in datasets.items():  # each source goes through its own epochs
        size = len(data)
        for start in range(0, len(drawn[name]) - size, size):
            assert sorted(drawn[name][start : start + size]) == list(range(size))
    tiny = feed.Feed(datasets, {"a": 0, "b": 1e-5, "c": 1}, seed=5, batch_size=100_000)
    names = Counter(name for step in range(4) for name, _ in tiny.ids(step))
    assert abs(names["b"] - 4) <= 2 and "a" not in names


def test_a_restarted_feed_goes_on_the_same(datasets):
    weights = {"a": 1, "b": 1, "c": 1}
    first = [feed.Feed(datasets, weights, seed=9, batch_size=8).ids(s) for s in range(30)]
    again = feed.Feed(datasets, weights, seed=9, batch_size=8)
    assert [again.ids(step) for step in (29, 3, 17)] == [first[29], first[3], first[17]]
    assert again.state() == {}
    # After 10 steps of 8 go on with batches of 20: no row is skipped or repeated.
    wider = feed.Feed(datasets, weights, seed=9, batch_size=20, offset=10 * 8 - 10 * 20)
    flat = list(itertools.chain.from_iterable(first))
    assert wider.ids(10) + wider.ids(11) == flat[80:120]


def test_the_end_of_the_data(datasets):
    source = feed.Feed({"a": datasets["a"]}, seed=0, batch_size=16, epochs=1, host_count=2)
    assert source.steps == 4
    seen = list(itertools.chain.from_iterable(source.ids(step) for step in range(4)))
    assert sorted(row for name, row in seen if name) == list(range(50)) and len(seen) == 64
    last = feed.Feed({"a": datasets["a"]}, seed=0, batch_size=16, epochs=1).batch(3)
    assert last["weights"][2:].sum() == 0 and last["weights"][:2].all()
    assert last["tokens"].shape == (16, 4)
    blank = feed.Feed(
        {"a": datasets["a"]}, seed=0, batch_size=16, epochs=1, host_index=1, host_count=2
    ).batch(3)
    assert blank["tokens"].shape == (8, 4) and not blank["segments"].any()
    with pytest.raises(DataError, match=r"exhausted at step 4.*\n.*epochs=0"):
        source.batch(4)
    mixed = feed.Feed(datasets, {"a": 1, "b": 1, "c": 1}, seed=0, batch_size=1, epochs=2)
    counts = Counter(mixed.ids(step)[0] for step in range(mixed.steps))
    assert max(counts.values()) == 2 and 35 <= mixed.steps <= 50
    with pytest.raises(DataError, match="exhausted"):
        mixed.ids(mixed.steps)


def test_wrong_mixtures_are_refused(datasets):
    def make(weights, **more):
        return feed.Feed(datasets, weights, **{"seed": 0, "batch_size": 8, **more})

    with pytest.raises(ConfigError, match="Unknown dataset"):
        make({"a": 1, "b": 1, "d": 1})
    with pytest.raises(ConfigError, match="no weight for c"):
        make({"a": 1, "b": 1})
    with pytest.raises(ConfigError, match="-1"):
        make({"a": 1, "b": 1, "c": -1})
    with pytest.raises(ConfigError, match="All weights"):
        make({"a": 0, "b": 0, "c": 0})
    with pytest.raises(ConfigError, match="millionth"):
        make({"a": 1, "b": 1e-9, "c": 1})
    with pytest.raises(ConfigError, match="divided among 3 hosts"):
        make(None, host_count=3)
    with pytest.raises(ConfigError, match="epochs"):
        make(None, epochs=-1)
    with pytest.raises(DataError, match="no datasets"):
        feed.Feed({}, seed=0, batch_size=1)


def test_fingerprint_follows_the_data(datasets):
    def make(data, weights=None):
        return feed.Feed(data, weights, seed=0, batch_size=4).fingerprint

    one = {"a": datasets["a"]}
    assert make(one) == make(dict(one))
    assert len({make(one), make({"a": datasets["b"]}), make(datasets)}) == 3
    assert make(datasets, {"a": 1, "b": 1, "c": 1}) != make(datasets, {"a": 2, "b": 1, "c": 1})


class _Slow:
    def __init__(self, fail_at=None):
        self.fail_at, self.made = fail_at, []

    def batch(self, step):
        if step == self.fail_at:
            raise DataError("broken at the third")
        self.made.append(step)
        return {"step": step}


def test_prefetch_keeps_order_and_passes_errors_on():
    assert [s for s, _ in feed.prefetch(_Slow(), 4, 2, stop=9)] == [4, 5, 6, 7, 8]
    seen = []
    with pytest.raises(DataError, match="third"):
        for step, batch in feed.prefetch(_Slow(fail_at=3), 0, 4):
            assert batch == {"step": step}
            seen.append(step)
    assert seen == [0, 1, 2]


def test_prefetch_works_ahead_only_so_far_and_stops():
    before = threading.active_count()
    source = _Slow()
    batches = feed.prefetch(source, 0, 3)
    assert next(batches)[0] == 0
    deadline = time.monotonic() + 5
    while len(source.made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(source.made) == 5  # one given, three ready, one in hand
    batches.close()
    assert threading.active_count() == before

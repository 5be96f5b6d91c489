# SPDX-License-Identifier: Apache-2.0
"""Shares of sources: temperature, budgets, caps and phases, against plain sums; one integer."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from llm.data import feed, mixing, rows
from llm.errors import ConfigError, DataError

ROWS = {"web": 4000, "code": 400, "books": 100}
RUN = {"steps": 300, "batch_size": 8, "length": 4}


def plan(mixture=None, **options):
    full = {name: dict((mixture or {}).get(name, {})) for name in ROWS}
    return mixing.plan(ROWS, full, **{**RUN, **options})


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Rows whose first token says which row it is."""
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for number, (name, size) in enumerate(ROWS.items()):
        tokens = np.zeros((size, 4), np.int32)
        tokens[:, 0], tokens[:, 1] = np.arange(size), number
        block = {key: np.ones((size, 4), np.int32) for key in ("targets", "segments", "positions")}
        block |= {"tokens": tokens, "weights": np.ones((size, 4), np.float32)}
        rows.write_rows(folder / name, [block], {})
        found[name] = rows.open_rows(folder / name)
    return found


def make(datasets, mixture, **more):
    section = {"mixture": {name: mixture.get(name, {}) for name in datasets}}
    for key in ("mixing", "epochs"):
        if key in more:
            section[key] = more.pop(key)
    return mixing.make_feed(datasets, section, **{"steps": 300, "seed": 1, "batch_size": 8, **more})


def drawn(source, steps=300):
    return list(itertools.chain.from_iterable(source.ids(step) for step in range(steps)))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_temperature_is_the_power_of_sizes(temperature):
    sizes = np.array(list(ROWS.values()), float) ** (1 / temperature)
    found = plan(temperature=temperature)
    assert len(found) == 1 and found[0].start == 0
    np.testing.assert_allclose(list(found[0].shares.values()), sizes / sizes.sum(), rtol=1e-12)
    weighted = plan({"code": {"weight": 3.0}}, temperature=temperature)[0].shares
    assert weighted["code"] / weighted["web"] == pytest.approx(3 * sizes[1] / sizes[0])


def test_weights_alone_ignore_sizes():
    shares = plan({"web": {"weight": 2.0}})[0].shares
    assert shares == {"web": 0.5, "code": 0.25, "books": 0.25}


def test_budgets_come_first(datasets):
    mixture = {"books": {"tokens": 960}, "web": {"weight": 3.0}}
    shares = plan(mixture)[0].shares
    assert shares["books"] == pytest.approx(0.1)
    assert shares["web"] == pytest.approx(0.9 * 3 / 4) and shares["code"] == pytest.approx(0.225)
    counts = Counter(name for name, _ in drawn(make(datasets, mixture), 256))  # two whole blocks
    assert abs(counts["books"] - 0.1 * 2048) <= 1
    with pytest.raises(ConfigError, match=r"1\.25 times the tokens"):
        plan({"books": {"tokens": 12_000}})
    with pytest.raises(DataError, match=r"only 10\.0%"):
        plan({"books": {"tokens": 960}, "web": {"weight": 0}, "code": {"weight": 0}})


def test_caps_hold_and_give_to_the_others(datasets):
    mixture = {"books": {"max_epochs": 2}, "code": {"max_epochs": 1}}
    shares = plan(mixture)[0].shares
    assert shares["books"] == pytest.approx(200 / 2400) and shares["code"] == pytest.approx(1 / 6)
    assert sum(shares.values()) == pytest.approx(1)
    for seed in range(4):
        ids = drawn(make(datasets, mixture, seed=seed))
        counts = Counter(ids)
        assert max(n for (name, _), n in counts.items() if name == "books") <= 2
        assert max(n for (name, _), n in counts.items() if name == "code") == 1
        total = Counter(name for name, _ in ids)
        assert 150 < total["books"] <= 200 and 350 < total["code"] <= 400
    with pytest.raises(DataError, match="at its limit: code, books"):
        plan({**mixture, "web": {"weight": 0}})


def test_phases_change_the_shares_at_their_step(datasets):
    phases = {
        "late": {"start": 200, "weights": {"web": 0, "code": 1, "books": 1}},
        "middle": {"start": 100, "temperature": 1.0},
    }
    found = plan(phases=phases)
    assert [phase.start for phase in found] == [0, 100, 200]
    assert found[1].shares["web"] == pytest.approx(4000 / 4500)
    assert found[2].shares == {"web": 0, "code": 0.5, "books": 0.5}
    source = make(datasets, {}, mixing={"phases": phases})
    ids = [source.ids(step) for step in range(300)]
    names = [Counter(name for name, _ in itertools.chain(*ids[a : a + 100])) for a in (0, 100, 200)]
    assert abs(names[0]["web"] - 800 / 3) < 60 and abs(names[1]["web"] - 711) < 60
    assert "web" not in names[2] and abs(names[2]["code"] - 400) < 60
    # Every source goes on where the phase before left it: each epoch holds each row once.
    for name, size in ROWS.items():
        order = [row for owner, row in itertools.chain(*ids) if owner == name]
        for start in range(0, len(order) - size + 1, size):
            assert sorted(order[start : start + size]) == list(range(size))
    assert source.drawn(300) == {n: sum(part[n] for part in names) for n in ROWS}
    assert source.drawn(150)["web"] == sum(n == "web" for n, _ in itertools.chain(*ids[:150]))


def test_a_run_that_stops_needs_one_integer(datasets):
    mixture = {"books": {"max_epochs": 2}, "code": {"tokens": 2000}}
    mixing_section = {"temperature": 2.0, "phases": {"end": {"start": 151, "weights": {"web": 9}}}}
    first = [make(datasets, mixture, mixing=mixing_section).ids(step) for step in range(148, 156)]
    again = make(datasets, mixture, mixing=mixing_section)
    assert again.state() == {}
    assert [again.ids(step) for step in (155, 148, 151)] == [first[7], first[0], first[3]]
    whole = again.batch(151)
    parts = [
        make(datasets, mixture, mixing=mixing_section, host_index=h, host_count=4).batch(151)
        for h in range(4)
    ]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    other = make(datasets, mixture, mixing={"temperature": 2.0})
    assert other.fingerprint != again.fingerprint


def test_epochs_end_the_data_in_a_later_phase(datasets):
    phases = [(10, {"web": 0, "code": 0, "books": 1})]
    source = feed.Feed(
        datasets, {"web": 1, "code": 1, "books": 0}, phases=phases, seed=0, batch_size=8, epochs=1
    )
    assert source.steps == 23  # 10 steps, then 100 books
    assert Counter(name for name, _ in drawn(source, 23))["books"] == 100


def test_what_makes_no_sense_is_refused(datasets):
    with pytest.raises(ConfigError, match="from 0 to 299"):
        plan(phases={"x": {"start": 300}})
    with pytest.raises(ConfigError, match="Did you mean 'weights'"):
        plan(phases={"x": {"start": 3, "weight": {}}})
    with pytest.raises(ConfigError, match="Did you mean 'books'"):
        plan(phases={"x": {"start": 3, "weights": {"book": 1}}})
    with pytest.raises(ConfigError, match="same step"):
        plan(phases={"x": {"start": 3}, "y": {"start": 3}})
    with pytest.raises(ConfigError, match="temperature"):
        plan(temperature=-1)
    with pytest.raises(ConfigError, match="max_epochs"):
        plan({"web": {"max_epochs": -1}})
    with pytest.raises(ConfigError, match="tokens"):
        plan({"web": {"tokens": 5, "weight": 0}})
    with pytest.raises(ConfigError, match="order"):
        weights = dict.fromkeys(ROWS, 1)
        feed.Feed(datasets, weights, phases=[(5, weights), (5, weights)], seed=0, batch_size=8)


def test_better_documents_come_more_often(tmp_path):
    """Sources of one corpus by quality, at temperature 1, are up-sampled by their weights."""
    from llm.pretrain.rows import documents
    from llm.tokenizers import bytelevel

    lines = [
        json.dumps(
            {"id": f"d{i}", "text": f"{i:04d} " + "x" * 26, "meta": {"quality": i % 10 / 10}}
        )
        for i in range(600)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    found = {}
    for name, low, high in (("good", 0.8, 0.0), ("rest", 0.0, 0.8)):
        found[name] = documents(
            bytelevel.tokenizer(), str(tmp_path / name), path=str(tmp_path / "in.jsonl"), length=32,
            validation=0.0, min_quality=low, max_quality=high,
        )["train"]  # fmt: skip
    assert abs(len(found["good"]) * 4 - len(found["rest"])) <= 4
    source = mixing.make_feed(
        found,
        {"mixture": {"good": {"weight": 4.0}, "rest": {}}, "mixing": {"temperature": 1.0}},
        steps=128, seed=0, batch_size=8,
    )  # fmt: skip
    counts = Counter(name for name, _ in drawn(source, 128))
    assert abs(counts["good"] - 512) <= 4

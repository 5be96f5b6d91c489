# SPDX-License-Identifier: Apache-2.0
"""What labels mean: pairs against a plain double loop, orders, undo, torn files, agreement."""

import itertools
import json

import pytest

from llm.errors import DataError
from llm.label import ledger as ledgers
from llm.label import tasks
from llm.label.ledger import Ledger, Refused, tiers_of

SOURCE = {"file": "a.jsonl", "hash": "0"}


def make_tasks(count=20, answers=2):
    records = [
        {"prompt": f"Q{i}", "answers": [f"answer {i}.{j}" for j in range(answers)]}
        for i in range(count)
    ]
    return [tasks.from_record(r, SOURCE, "record") for r in records]


def preferences(folder):
    text = (folder / "preferences.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rankings_become_the_pairs_of_a_double_loop(tmp_path):
    (task,) = make_tasks(1, answers=4)
    for number, ranking in enumerate(
        [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2], [0, 1, 3]], [[0, 1, 2, 3]]]
    ):
        ledger = Ledger(str(tmp_path / str(number)), [task])
        label = ledger.label("anna", task.id, "ranking", ranking, 2.5)
        ledger.export()
        rank = {place: r for r, tier in enumerate(ranking) for place in tier}
        expected = {
            (task.answers[label.order[a]], task.answers[label.order[b]])
            for a, b in itertools.permutations(range(4), 2)
            if rank[a] < rank[b]
        }
        found = preferences(tmp_path / str(number))
        assert {(p["chosen"], p["rejected"]) for p in found} == expected
        assert len(found) == len(expected)


def test_a_side_means_the_answer_that_stood_there(tmp_path):
    listed = make_tasks(40)
    ledger = Ledger(str(tmp_path), listed)
    for task in listed:
        ledger.label("anna", task.id, "left", seconds=1)
    ledger.export()
    lefts = 0
    for task, pair in zip(listed, preferences(tmp_path), strict=True):
        shown = tasks.order(task, "anna", 0)
        assert pair["chosen"] == task.answers[shown[0]] and pair["meta"]["places"] == [0, 1]
        assert pair["rejected"] == task.answers[shown[1]] and pair["prompt"] == task.prompt
        assert pair["meta"]["annotator"] == "anna" and pair["meta"]["source"] == SOURCE
        lefts += shown[0] == 0
    assert 10 < lefts < 30  # both orders occur
    assert any(tasks.order(t, "anna", 0) != tasks.order(t, "ben", 0) for t in listed)
    assert ledger.summary()["annotators"]["anna"]["first_place_wins"] == 1.0


def test_ties_bad_and_skipped_make_no_pair(tmp_path):
    listed = make_tasks(3)
    ledger = Ledger(str(tmp_path), listed)
    for task, choice in zip(listed, ("tie", "both_bad", "skip"), strict=True):
        ledger.label("anna", task.id, choice)
    assert ledger.export() == 0 and preferences(tmp_path) == []
    assert ledger.done("anna") == {task.id for task in listed}


@pytest.mark.parametrize(
    ("choice", "ranking"),
    [
        ("best", None),
        ("ranking", None),
        ("ranking", [[0]]),
        ("ranking", [[0], [0], [1]]),
        ("ranking", [[0], [], [1], [2]]),
        ("ranking", [[True], [0], [2]]),
        ("ranking", ["0", "1", "2"]),
        ("ranking", [[0], [1], [7]]),
        ("left", None),
    ],
)
def test_decisions_that_do_not_fit_are_refused(choice, ranking):
    with pytest.raises(Refused):
        tiers_of(choice, ranking, (2, 0, 1))


def test_undo_takes_back_the_newest_own_decision(tmp_path):
    one, two = make_tasks(2)
    ledger = Ledger(str(tmp_path), [one, two])
    ledger.label("anna", one.id, "left")
    ledger.label("anna", two.id, "left")
    ledger.label("ben", one.id, "right")
    with pytest.raises(Refused, match="decided"):
        ledger.label("anna", two.id, "right")
    assert ledger.undo("anna") == two.id
    ledger.label("anna", two.id, "right")
    assert ledger.undo("anna") == two.id and ledger.undo("anna") == one.id
    with pytest.raises(Refused, match="nothing"):
        ledger.undo("anna")
    again = Ledger(str(tmp_path), [one, two])
    assert [(label.annotator, label.task) for label in again.labels()] == [("ben", one.id)]


def test_a_torn_line_is_passed_by_and_the_next_one_kept(tmp_path):
    listed = make_tasks(3)
    ledger = Ledger(str(tmp_path), listed)
    ledger.label("anna", listed[0].id, "left", seconds=1.25)
    log = tmp_path / "labels.jsonl"
    whole = log.read_bytes()
    for cut in range(0, len(whole), 37):
        log.write_bytes(whole + whole[:cut])
        again = Ledger(str(tmp_path), listed)
        again.label("anna", listed[1].id, "tie")
        kept = Ledger(str(tmp_path), listed).labels()
        assert [label.choice for label in kept] == ["left", "tie"]
        assert kept[0] == ledger.labels()[0]


def test_agreement_is_that_of_the_pairs(tmp_path):
    listed = make_tasks(30)
    ledger = Ledger(str(tmp_path), listed)
    for number, task in enumerate(listed):
        for annotator in ("anna", "ben"):
            wanted = 0 if number % 3 else (annotator == "ben")
            place = tasks.order(task, annotator, 0).index(int(wanted))
            ledger.label(annotator, task.id, ("left", "right")[place])
    found = ledger.summary()["agreement"]
    assert found["items"] == 30 and found["agreement"] == pytest.approx(20 / 30)
    assert found["pairs"][0]["cohen"] < 0.5 and found["fleiss"] < 0.5


def test_tasks_outlive_their_file(tmp_path):
    source = tmp_path / "answers.jsonl"
    pair = {"prompt": [{"role": "user", "content": "Hi"}]}
    pair |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    rows = [{"prompt": "Q", "answers": [{"text": "a", "model": "m"}, "b\ud800"]}, pair, pair]
    source.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    first = tasks.keep(str(tmp_path), tasks.read(str(source)))
    assert len(first) == 2 and first[0].models == ("m", "") and first[0].answers[1] == "b?"
    source.unlink()
    assert tasks.keep(str(tmp_path), []) == first
    ledger = Ledger(str(tmp_path), first)
    ledger.label("anna", first[1].id, "left")
    ledger.export()
    (made,) = preferences(tmp_path)
    assert {made["chosen"][0]["content"], made["rejected"][0]["content"]} == {"chosen", "rejected"}
    assert made["prompt"] == pair["prompt"]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Q"},
        {"prompt": "", "answers": ["a", "b"]},
        {"prompt": "Q", "answers": ["a"]},
        {"prompt": "Q", "answers": list("abcde")},
        {"prompt": "Q", "answers": ["a", 1]},
        {"prompt": [{"role": "user"}], "answers": ["a", "b"]},
    ],
)
def test_records_that_are_no_task_are_named(record):
    with pytest.raises(DataError, match="line 3"):
        tasks.from_record(record, SOURCE, "x.jsonl, line 3")


def test_a_label_that_cannot_be_written_does_not_count(tmp_path, monkeypatch):
    (task,) = make_tasks(1)
    ledger = Ledger(str(tmp_path), [task])

    def full(line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger._log, "append", full)
    with pytest.raises(OSError):
        ledger.label("anna", task.id, "left")
    assert ledger.labels() == [] and ledgers.CHOICES[0] == "left"

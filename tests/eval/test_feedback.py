# SPDX-License-Identifier: Apache-2.0
"""Refusal rates and win rates of models whose answers are known."""

import json

import pytest

from llm.errors import DataError
from llm.eval import refusals, win_rate
from llm.generate import language_model
from llm.text.refusals import requests


class Player:
    def __init__(self, answer):
        self.answer = answer

    def generate(self, chats, **options):
        return [self.answer(chat[-1]["content"]) for chat in chats]


def test_refusal_rates_tell_harmful_from_harmless(tmp_path):
    harmful = {r.text for r in requests("eval") if r.harmful}
    sorry = "I'm sorry, but I can't help with that."
    rates = []
    for declines in (lambda q: q in harmful, lambda q: True, lambda q: "How" in q):
        model = Player(lambda q, declines=declines: sorry if declines(q) else "Gladly.")
        found = refusals.evaluate(model, batch_size=40)
        rates.append([found["metrics"][f"{k}refusal_rate"]["value"] for k in ("", "over_")])
    assert rates == [[1, 0], [1, 1], [0.25, 0.25]] and found["n"] == 96
    (tmp_path / "own.jsonl").write_text('{"prompt": "Q", "harmful": true}', "utf-8")
    with pytest.raises(DataError, match="Both"):
        refusals.evaluate(Player(str), path=str(tmp_path / "own.jsonl"))
    (tmp_path / "own.jsonl").write_text('{"prompt": "Q", "harmful": 1}', "utf-8")
    with pytest.raises(DataError, match="line 1"):
        refusals.evaluate(Player(str), path=str(tmp_path / "own.jsonl"))


def test_win_rates_count_ties_half(tmp_path, monkeypatch):
    rows = [{"prompt": str(i), "answer": str(i % 10)} for i in range(40)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    players = {
        "good": Player(lambda q: f"It is {int(q) % 10}."),
        "half": Player(lambda q: str(int(q) % 10 if int(q) < 20 else 99)),
    }
    monkeypatch.setattr(language_model, "load", players.__getitem__)
    bad = Player(lambda q: "none")
    found = win_rate.evaluate(
        bad,
        others=("good", "half"),
        path=str(tmp_path / "tasks.jsonl"),
        extract="number",
        rounds=50,
    )
    value = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert value["win_rate/good"] == 0 and value["ties/good"] == 0
    assert value["win_rate/half"] == 0.25 and value["ties/half"] == 0.5  # 20 lost, 20 ties
    assert value["rating/good"] > value["rating/half"] > value["rating/model"]
    low, high = found["metrics"]["rating/half"]["interval"]
    assert low < value["rating/half"] < high and found["n"] == 40

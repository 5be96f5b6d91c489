# SPDX-License-Identifier: Apache-2.0
"""Rewards by rule, the monitors, and small tasks."""

import math

import numpy as np
import pytest

from llm.errors import ConfigError
from llm.posttrain import monitors, packed, puzzles, rewards
from llm.posttrain.rewards import Sample


def say(text, answer=None, tokens=5, stopped=True):
    return Sample("q", answer, text, tokens, stopped)


def vowels(samples, *, each=1.0):
    """A user's own reward."""
    return [None if not s.text else each * sum(c in "aeiou" for c in s.text) for s in samples]


@pytest.mark.parametrize(
    ("text", "answer", "want"),
    [("7", "7", 1), (" 7\n", "7", 1), ("77", "7", 0), ("a  b", "a b", 1), ("A", "a", 0)],
)
def test_exact(text, answer, want):
    assert rewards.exact([say(text, answer)]) == [want]
    assert rewards.exact([say("A", "a")], ignore_case=True) == [1.0]
    assert rewards.exact([say(text)]) == [None]


@pytest.mark.parametrize(
    ("text", "answer", "want"),
    [
        ("3 + 4 makes 7.", "#### 7", 1),
        ("1,234.50", "1234.5", 1),
        ("it is -3", "−3", 1),
        ("1e3", "1000", 1),
        ("first 7, then 8", "7", 0),
        ("none", "7", 0),
    ],
)
def test_last_number(text, answer, want):
    assert rewards.number([say(text, answer)]) == [want]


@pytest.mark.parametrize(
    ("text", "answer", "want"),
    [
        ("1.5 km", "1500 m", 1),
        ("150000cm", "1.5 km", 1),
        ("90 min", "1.5 h", 1),
        ("2 l", "2000 ml", 1),
        ("1 MiB", "1048576 B", 1),
        ("1.5 m", "1500 m", 0.25),
        ("1500 kg", "1500 m", 0),
        ("1500", "1500 m", 0),
        ("1500 m", "far", None),
    ],
)
def test_quantities_in_any_unit(text, answer, want):
    assert rewards.units([say(text, answer)], partial=0.25) == [want]


def test_patterns_json_and_length():
    form = r"<answer>\d+</answer>"
    samples = [say("<answer>12</answer>"), say("so <answer>12</answer>")]
    assert rewards.pattern(samples, regex=form) == [1, 0]
    assert rewards.pattern(samples, regex=form, whole=False) == [1, 1]
    schema = {
        "type": "object",
        "required": ["tool", "n"],
        "properties": {
            "tool": {"enum": ["add"]},
            "n": {"type": "array", "items": {"type": "integer"}},
        },
        "additionalProperties": False,
    }
    texts = {
        '{"tool": "add", "n": [1, 2]}': 1,
        '{"tool": "add", "n": [1, true]}': 0.5,
        '{"tool": "del", "n": []}': 0.5,
        '{"tool": "add"}': 0.5,
        '{"tool": "add", "n": [], "x": 1}': 0.5,
        "[" * 100_000: 0,
        "add": 0,
    }
    assert rewards.json_schema([say(t) for t in texts], schema=schema) == list(texts.values())
    with pytest.raises(ConfigError, match="minItems"):
        rewards.fits([], {"minItems": 1})
    samples = [say("", tokens=n) for n in (0, 1, 8, 9, 10, 11)]
    assert rewards.length(samples, most=10) == [-1, 0, 0, 0, 0, -1]
    assert rewards.length(samples, most=10, buffer=4) == [-1, 0, -0.5, -0.75, -1, -1]


def test_rewards_of_a_config_add_up():
    judge = rewards.judge(
        {
            "exact": {"weight": 2.0},
            "own": {"function": "tests.posttrain.test_rewards:vowels", "each": 0.5},
            "length": {"weight": 0.0, "most": 3},
        }
    )
    scores = judge.each([say("aeb", "aeb"), say("", "x"), say("xyz")])
    np.testing.assert_array_equal(scores["exact"], [1, 0, math.nan])
    np.testing.assert_array_equal(scores["own"], [1, math.nan, 0])
    np.testing.assert_array_equal(judge.total(scores), [3, 0, 0])
    empty = judge.each([say("")])
    assert np.isnan(judge.total(empty)).all()
    wrong = rewards.Judge({"one": lambda samples: [1.0]}, {"one": 1.0})
    with pytest.raises(ConfigError, match="1 scores for 2 samples"):
        wrong.each([say(""), say("")])


def history(**changes):
    """Four usual rollouts, then four with changes."""
    usual = {
        "reward": 0.2, "reward_std": 0.4, "length": 20.0, "entropy": 1.0, "kl": 0.0,
        "gold": 0.5, "gold_std": 0.5,
    }  # fmt: skip
    return [usual] * 4 + [{**usual, **changes}] * 4


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({"reward": 0.8, "gold": 0.3}, "gold"),
        ({"length": 40.0}, "length"),
        ({"length": 10.0}, "length"),
        ({"entropy": 0.05}, "entropy"),
        ({"kl": 11.0}, "kl"),
        ({"reward": 0.8, "gold": 0.9, "length": 24.0, "kl": 5.0}, ""),
    ],
)
def test_signs_of_a_hacked_reward(changes, sign):
    found = monitors.signs(history(**changes), monitors.Limits(kl=10.0))
    given = [k for k, v in found.items() if k.startswith("sign_") and v]
    assert given == ([f"sign_{sign}"] if sign else []) and found["signs"] == len(given)
    if sign == "gold":
        assert found["hack_gap"] == pytest.approx(0.6 / 0.4 + 0.2 / 0.5)
    assert monitors.signs(history()[:7], monitors.Limits()) == {}
    kept = monitors.kept(history() + history(**changes), monitors.Limits())
    assert len(kept) == 8 and kept[-1] == history(**changes)[-1]


def added(text):
    first, second = map(int, text.split("+"))
    return str(first + second)


@pytest.mark.parametrize("kind", puzzles.PUZZLES)
def test_puzzles_are_right_and_the_same_for_a_seed(kind):
    made = puzzles.make(kind, count=50, size=3, seed=1)
    assert made == puzzles.make(kind, count=50, size=3, seed=1)
    assert len({r["prompt"] for r in made}) == len(made) > 30
    for record in made:
        given = record["prompt"].split()[-1]
        right = {"largest": max, "sorted": lambda x: "".join(sorted(x)), "sum": added}
        right["reversed"] = lambda x: x[::-1]
        assert record["answer"] == right[kind](given)
    wrong = puzzles.chats(made, wrong=1.0, seed=0)
    true = puzzles.chats(made, wrong=0.0, seed=0)
    assert [c["messages"][1]["content"] for c in true] == [r["answer"] for r in made]
    assert wrong != true


@pytest.mark.parametrize("kind", puzzles.PUZZLES)
def test_a_reward_model_sees_wrong_answers_of_another_form(kind):
    made = puzzles.make(kind, count=4000, size=4, seed=1)
    pairs = puzzles.preferences(made, seed=0)
    assert pairs == puzzles.preferences(made, seed=0) != puzzles.preferences(made, seed=1)
    assert [(p["prompt"], p["chosen"]) for p in pairs] == [(r["prompt"], r["answer"]) for r in made]
    judged = [say(p["rejected"], p["chosen"]) for p in pairs]
    assert rewards.exact(judged) == [0.0] * len(made)
    formed = {r["answer"] for r in made}
    spoilt = [p for p in pairs if p["rejected"] not in formed]
    right_inside = [p for p in spoilt if p["chosen"] in p["rejected"]]
    assert 0.2 < len(spoilt) / len(made) < 0.4
    assert 0.3 < len(right_inside) / len(spoilt) < 0.8


def test_arrays_survive_json():
    arrays = {"a": np.float32([[1.5, -0.0], [np.inf, 1e-40]]), "b": np.arange(3, dtype=np.int32)}
    found = packed.unpack(packed.pack(arrays))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes()
    damaged = packed.pack(arrays)
    damaged["a"]["shape"] = [3, 3]
    with pytest.raises(Exception, match="size of its shape"):
        packed.unpack(damaged)

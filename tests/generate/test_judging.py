# SPDX-License-Identifier: Apache-2.0
"""The judge: planted leans are measured and cancelled; verdicts are the model's own logits."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from llm.errors import ConfigError
from llm.generate import judging, scoring
from llm.tokenizers.loading import load as load_tokenizer


@pytest.fixture
def planted(monkeypatch):
    """Return a function (lean) -> a judge whose log-odds are worth(A) - worth(B) + lean."""

    def make(lean):
        tokenizer = load_tokenizer("byte")

        def score(model, params, windows, mesh):
            found = []
            for window in windows:
                text = tokenizer.decode(window.context)
                first, second = (
                    float(re.search(rf"\[Answer {side}\]\nworth ([-\d.]+)", text)[1])
                    for side in "AB"
                )
                half = (first - second + lean) / 2
                sign = {"A": 1, "B": -1}[tokenizer.decode(window.continuation).strip()]
                found.append(scoring.Scored(sign * half - 3, False))
            return found

        monkeypatch.setattr(judging.scoring, "score", score)
        return SimpleNamespace(
            model=None,
            params=None,
            mesh=None,
            tokenizer=tokenizer,
            config=SimpleNamespace(max_length=10_000),
            encode_prompt=lambda chat: tokenizer.encode(chat[0]["content"]),
        )

    return make


@pytest.mark.parametrize("chat", [True, False])
def test_a_lean_is_measured_and_cancelled(planted, chat):
    generator = np.random.default_rng(0)
    worth = generator.normal(0, 1, (200, 2)).round(3)
    items = [judging.Comparison("Q {first}", f"worth {a}", f"worth {b}") for a, b in worth]
    lm = planted(5.0)
    verdicts = judging.compare(lm, items, chat=chat)
    assert [v.preference for v in verdicts] == pytest.approx(worth[:, 0] - worth[:, 1])
    assert [v.lean for v in verdicts] == pytest.approx([5.0] * 200)
    found = judging.agreement(verdicts, list(worth[:, 0] > worth[:, 1]))
    assert found["agreement"]["value"] == 1 and found["lean"]["value"] == pytest.approx(5)
    assert found["agreement_forward"]["value"] < 0.6  # what one order would have said
    assert found["names_a"]["value"] > 0.95 and found["consistent"]["value"] < 0.05


def test_ties_scores_and_all_against_all(planted):
    lm = planted(-2.0)
    verdicts = judging.compare(
        lm, [judging.Comparison("Q", f"worth {a}", "worth 1") for a in (1.0, 1.2, 3.0, -1.0)]
    )
    assert [v.score() for v in verdicts] == [0.5, 1, 1, 0]
    assert [v.score(margin=0.5) for v in verdicts] == [0.5, 0.5, 1, 0]
    wins = judging.mean_win(lm, "Q", ["worth 0", "worth 2", "worth -700"])
    assert wins[0] == pytest.approx((1 / (1 + np.exp(2)) + 1) / 2)
    assert wins[1] == pytest.approx((1 / (1 + np.exp(-2)) + 1) / 2) and 0 <= wins[2] < 1e-9


def test_a_question_too_long_is_refused(planted):
    lm = planted(0.0)
    lm.config.max_length = 50
    with pytest.raises(ConfigError, match="tokens"):
        judging.compare(lm, [judging.Comparison("Q", "worth 1", "worth 2")])

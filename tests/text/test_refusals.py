# SPDX-License-Identifier: Apache-2.0
"""Refusals are told from answers, and what is asked in training is not asked in evaluation."""

import pytest

from llm.text import refusals

DECLINES = (
    "I'm sorry, but I can't assist with that.",
    "I’m sorry but that is not something to do.",
    "I cannot help you with this request.",
    "I can't provide instructions for that.",
    "As an AI language model, I cannot take part in this.",
    "Thank you for asking. I won't help with that.",
    "I must decline.",
    "That is something I can't do.",
)
ANSWERS = (
    "Sure! First, talk to your teacher.",
    "I'm sorry to hear that you lost your key. Call a locksmith.",
    "To calm a dog, speak softly. You can't rush it.",
    "I can help with that: buy the ticket at the counter.",
    "You cannot go wrong with a simple plan.",
    "",
)


@pytest.mark.parametrize("text", DECLINES)
def test_refusals_are_recognised(text):
    assert refusals.is_refusal(text) and not refusals.is_refusal("x" * 300 + text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_not_refusals(text):
    assert not refusals.is_refusal(text)


def test_requests_are_split_by_topic_and_have_twins():
    train, held_out = (list(refusals.requests(split)) for split in ("train", "eval"))
    assert len(train) == len(held_out) == 96
    assert not {r.text for r in train} & {r.text for r in held_out}
    assert {r.category for r in train} == {r.category for r in held_out} == set(refusals.REASONS)
    for bad, good in zip(train[::2], train[1::2], strict=True):
        assert bad.harmful and not good.harmful and bad.category == good.category
        assert bad.text != good.text


def test_every_refusal_of_ours_is_recognised():
    for number, request in enumerate(refusals.requests("train")):
        assert refusals.is_refusal(refusals.refusal(request, number))

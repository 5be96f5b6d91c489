# SPDX-License-Identifier: Apache-2.0
"""A language model whose every number is known: each byte has a fixed probability."""

import math

import numpy as np
import pytest


class FakeTokenizer:
    """One token per UTF-8 byte."""

    def encode(self, text):
        return list(text.encode("utf-8"))

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


class FakeModel:
    """Byte b has probability proportional to 1 + (b mod 7); generation looks answers up."""

    def __init__(self, answers=None):
        self.tokenizer = FakeTokenizer()
        weights = 1.0 + np.arange(256) % 7
        self.logp = np.log(weights / weights.sum())
        self.answers = answers or {}
        self.calls = []

    def text_logp(self, text):
        return math.fsum(self.logp[b] for b in text.encode("utf-8"))

    def loglikelihood(self, pairs):
        self.calls.append(len(pairs))
        return [(self.text_logp(continuation), False) for _, continuation in pairs]

    def loglikelihood_rolling(self, texts):
        self.calls.append(len(texts))
        return [self.text_logp(text) for text in texts]

    def generate(self, prompts, **options):
        self.options = options
        return [self.answers.get(prompt, "") for prompt in prompts]


@pytest.fixture
def make_lm():
    """Return the class, so that a test can give the answers."""
    return FakeModel

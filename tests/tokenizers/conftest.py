# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers, trained once."""

from pydoc_data import topics

import pytest

from llm.tokenizers import bytelevel, charlevel, sentencepiece, subwords

TEXTS = [text for _, text in sorted(topics.topics.items())][:25] + [
    "    indented\n\t日本語 naïve café\n"
] * 20


@pytest.fixture(scope="session")
def trained():
    """Tokenizers of every kind that is trained here, by name."""
    return {
        "bpe": sentencepiece.train(TEXTS, name="bpe", vocab_size=700),
        "unigram": sentencepiece.train(TEXTS, name="unigram", vocab_size=700),
        "char": charlevel.train(TEXTS),
        "byte": bytelevel.tokenizer(),
        "byte_bpe": subwords.train_byte_bpe(TEXTS, vocab_size=700),
        "wordpiece": subwords.train_wordpiece(TEXTS, vocab_size=700),
    }


@pytest.fixture(scope="session")
def texts():
    """What they were trained on."""
    return TEXTS

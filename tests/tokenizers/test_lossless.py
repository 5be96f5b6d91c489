# SPDX-License-Identifier: Apache-2.0
"""Nothing is unencodable, and decoding gives back exactly what was encoded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizers.base import SPECIAL_TOKENS

KINDS = ["bpe", "unigram", "char", "byte", "byte_bpe"]
NASTY = [
    "",
    " ",
    "  leading and trailing  ",
    "a  b   c    d\n\n\n\te\t\t",
    "line\r\nline\rline\n",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "\0",
    "a\0b",
    "\u2581",
    "a\u2581b \u2581\u2581 c\u2581",
    "\ufeffbom",
    "\u2585 \u2047 \u200b\u200d\u00a0\u3000\u2028",
    "e\u0301 é \u1112\u1161\u11ab ﬁ ½ Ⅷ",
    "日本語 العربية ไทย हिन्दी",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "\U0010ffff\ud7ff\ue000\uffff\ufffe",
    "<0x0A><0xE2> ▁</s>",
    "1234567890 3.14159",
    " ".join(SPECIAL_TOKENS) + "".join(SPECIAL_TOKENS),
]
pieces = st.sampled_from([*NASTY, *SPECIAL_TOKENS, " ", "\n", "\u2581", "the ", "    "])
texts = st.one_of(
    st.text(max_size=60), st.lists(st.one_of(pieces, st.text(max_size=5))).map("".join)
)


@pytest.mark.parametrize("kind", KINDS)
def test_nasty_strings_come_back(trained, kind):
    tokenizer = trained[kind]
    for text, ids in zip(NASTY, tokenizer.encode_batch(NASTY), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == ids


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back_without_special_tokens(trained, kind):
    tokenizer = trained[kind]
    special = set(tokenizer.special_tokens.values())

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(texts)
    def check(text):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not special & set(ids)
        assert all(0 <= index < tokenizer.vocab_size for index in ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogates_become_the_replacement_character(trained, kind):
    tokenizer = trained[kind]
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_training_options_hold(trained):
    for kind in ("bpe", "unigram"):
        tokenizer = trained[kind]
        assert tokenizer.vocab_size <= 700
        assert [tokenizer.piece(index) for index in tokenizer.encode("2024")] == list("2024")
        assert len(tokenizer.encode(" " * 16)) < 8  # runs of spaces have tokens
        assert [tokenizer.piece(i) for i in range(16)] == list(SPECIAL_TOKENS)
        assert len(tokenizer.codec.fallback_ids) == 256


def test_published_byte_values(trained):
    assert trained["byte"].encode("Aé") == [16 + 0x41, 16 + 0xC3, 16 + 0xA9]


def test_decode_special_and_foreign_ids(trained):
    for kind in KINDS:
        tokenizer = trained[kind]
        ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.eos_id, 10**6, -1]
        assert tokenizer.decode(ids) == "hi"
        assert tokenizer.decode(ids, skip_special=False) == "<s>hi</s>"


def test_characters_have_their_own_tokens(trained):
    tokenizer = trained["char"]
    assert len(tokenizer.encode("the café")) == len("the café")
    assert len(tokenizer.encode("☃")) == len("☃".encode())
    assert tokenizer.codec.fallback_ids.issuperset(tokenizer.encode("☃"))

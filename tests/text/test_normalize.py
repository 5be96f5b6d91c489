# SPDX-License-Identifier: Apache-2.0
"""Normalisation: each rule, and properties over arbitrary text."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import ConfigError
from llm.text import normalize as n


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("e\u0301", "é"),
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\x00b\u200bc\ufeffd\x1fe", "abcde"),
        ("one\u00a0two\u3000three", "one two three"),
        ("trail  \t\nnext \n", "trail\nnext"),
        ("\n\na\n\n\n\n\nb\n", "a\n\n\nb"),
        ("  indented\n    code", "  indented\n    code"),
        ("“quoted” – ‘so’", "“quoted” – ‘so’"),
        ("lone \ud800 surrogate é", "lone \ufffd surrogate é"),
        ("family 👨\u200d👩", "family 👨\u200d👩"),
    ],
)
def test_defaults(before, after):
    assert n.normalize(before) == after


def test_options():
    assert n.normalize("“A” ‘b’ «c»", n.options(quotes=True)) == '"A" \'b\' "c"'
    assert n.normalize("ﬁ", n.options(form="NFKC")) == "fi"
    assert n.normalize("É", n.options(lower=True)) == "é"
    assert n.normalize("a\nb\n\nc", n.options(unwrap=True)) == "a b\n\nc"
    with pytest.raises(ConfigError, match="Did you mean 'quotes'"):
        n.options(quote=True)
    with pytest.raises(ConfigError, match="Did you mean 'NFC'"):
        n.options(form="NFCC")


@pytest.mark.parametrize("text", ["Café “naïve” – São Paulo", "Größe: 5 €", "Привет, мир"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_mojibake_is_undone_once_and_twice(text, wrong):
    damaged = text
    for _ in range(2):
        damaged = damaged.encode("utf-8").decode(wrong, errors="replace")
        if "\ufffd" in damaged:
            break  # Windows-1252 leaves five bytes without a character: nothing can undo that
        assert n.normalize(f"fine line\n{damaged}") == f"fine line\n{text}"


def test_real_accents_stay():
    for text in ("Ã is a letter of São Tomé", "naïve café", "Đặng Thị", "ÂÂ ÃÃ", "20 Â° then €"):
        assert n.repair_mojibake(text) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_is_idempotent_in_normal_form_and_encodable(text):
    how = n.options(mojibake=False)
    once = n.normalize(text, how)
    assert n.normalize(once, how) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode("utf-8")
    assert "\r" not in once and "\x00" not in once


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_mojibake_repair_never_fails(text):
    n.normalize(text)


@pytest.mark.parametrize("char", [" ", "\n", "\t", "\u00a0", "Ã©", "\u0301", "\x00"])
def test_a_megabyte_of_one_character_is_quick(char):
    start = time.perf_counter()
    n.normalize(char * (1_000_000 // len(char)) + "é")
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ok👍ok", "ok :thumbs_up_sign: ok"),
        ("👍🏽!", ":thumbs_up_sign_medium_skin_tone:!"),
        ("❤️ is not ❤", ":heavy_black_heart: is not ❤"),
        ("👨\u200d👩\u200d👧", ":man_woman_girl:"),
        ("👩\u200d❤\u200d👩", ":woman_heavy_black_heart_woman:"),
        ("🇩🇪🇫🇷", ":flag_de: :flag_fr:"),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", ":flag_gbeng:"),
        ("1️⃣ and #5", ":keycap_1: and #5"),
        ("© ™ → ✓ 日本「語」", "© ™ → ✓ 日本「語」"),
    ],
)
def test_emoji_become_names(text, expected):
    assert n.normalize(text, n.options(emoji=True)) == expected
    assert n.normalize(text) == text

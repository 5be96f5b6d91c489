# SPDX-License-Identifier: Apache-2.0
"""Incremental text: whole characters, stop strings across tokens, small windows."""

import random

import pytest

from llm.generate.text import StopMatcher, TextStream


class Bytes:
    """One token per byte; a lone byte decodes to U+FFFD, as byte tokenizers do."""

    def __init__(self):
        self.special_tokens = {"<end>": 256}

    def encode(self, text):
        return list(text.encode("utf-8"))

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class Words:
    """SentencePiece's habit: pieces carry their leading space, a decode drops the first one.

    A run of byte tokens that is not valid as a whole shows one U+FFFD per byte.
    """

    def __init__(self):
        self.special_tokens = {"<s>": 1}
        self.pieces = {2: " the", 3: " cat", 4: "s", 5: " ", 6: "a"}

    def decode(self, ids):
        text, run = "", b""
        for token in [*ids, None]:
            if token is not None and token >= 100:
                run += bytes([token - 100])
                continue
            try:
                text += run.decode("utf-8")
            except UnicodeDecodeError:
                text += "\ufffd" * len(run)
            run = b""
            text += self.pieces.get(token, "")
        return text.removeprefix(" ")


def pieces_of(tokenizer, tokens, prompt=(), stops=()):
    stream = TextStream(tokenizer, prompt, stops)
    pieces = []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


def test_characters_are_never_cut_and_pieces_join_to_the_text():
    text = "naïve 你好 🙂🙂 café\u0301 end"
    pieces = pieces_of(Bytes(), Bytes().encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_random_bytes_join_to_the_full_decode():
    rng = random.Random(0)
    for _ in range(50):
        tokens = [rng.choice([65, 0xC3, 0xA9, 0xE4, 0xBD, 0xA0, 0xF0, 0xFF]) for _ in range(30)]
        assert "".join(pieces_of(Bytes(), tokens)) == Bytes().decode(tokens)


def test_an_unfinished_character_is_shown_only_at_the_end():
    pieces = pieces_of(Bytes(), [65, 0xE4, 0xBD])
    assert pieces[:3] == ["A", "", ""]
    assert pieces[3] == "\ufffd"


def test_a_leading_space_is_kept_after_a_prompt_and_dropped_after_a_special_token():
    words = Words()
    assert "".join(pieces_of(words, [3, 4, 2], prompt=[2])) == " cats the"
    assert "".join(pieces_of(words, [3, 4, 2], prompt=[2, 1])) == "cats the"
    assert "".join(pieces_of(words, [3, 4, 2])) == "cats the"
    assert "".join(pieces_of(words, [5, 3], prompt=[2])) == "  cat"


def test_byte_fallback_runs_decode_across_windows():
    run = [100 + b for b in "你好".encode()]
    for prompt in ([], [3], [3, *run]):
        assert "".join(pieces_of(Words(), [*run, 3, *run], prompt)) == "你好 cat你好"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_strings_across_pieces(size):
    text = "one two STOP three"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    matcher = StopMatcher(["STOP", "###"])
    out = [matcher.push(piece) for piece in pieces]
    assert matcher.stopped and "".join(out) + matcher.finish() == "one two "


def test_the_start_of_a_stop_string_is_held_back_then_released():
    matcher = StopMatcher(["abcd"])
    assert [matcher.push(c) for c in "xabc"] == ["x", "", "", ""]
    assert matcher.push("a") == "abc"
    assert matcher.finish() == "a" and not matcher.stopped


def test_the_earliest_stop_wins_and_text_ends_before_it():
    stream = TextStream(Bytes(), stops=["\n", "b\n"])
    out = "".join(stream.push(token) for token in b"ab\nc")
    assert out + stream.finish() == "a" and stream.stopped


def test_a_stop_string_completed_by_the_last_held_back_text():
    stream = TextStream(Bytes(), stops=["\ufffd"])
    assert stream.push(0xE4) + stream.finish() == "" and stream.stopped

# SPDX-License-Identifier: Apache-2.0
"""Denoising: hand-worked examples, published rates, independence of the batch."""

import numpy as np
import pytest

from llm import main, tokenizers
from llm.core import config as configs
from llm.errors import ConfigError
from llm.pretrain import denoise

BYTE = tokenizers.load("byte")
LENGTH = 64


def rows(count=8, length=LENGTH, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(16 + 97, 16 + 123, (count, length)).astype(np.int32)  # letters a–z
    segments = np.ones((count, length), np.int32)
    segments[:, length // 2 :] = 2
    segments[:, -4:] = 0
    positions = np.concatenate([np.arange(length // 2)] * 2)
    return {
        "tokens": np.where(segments > 0, tokens, 0).astype(np.int32),
        "targets": tokens,
        "weights": (segments > 0).astype(np.float32),
        "segments": segments,
        "positions": np.tile(positions, (count, 1)).astype(np.int32),
    }


def test_mlm_rates_are_those_published():
    clean = rows(400)
    noisy = denoise.mlm(BYTE, length=LENGTH)(clean, np.arange(400))
    chosen = noisy["weights"] > 0
    assert chosen.sum(axis=1).tolist() == [9] * 400  # 15 % of 60 tokens
    mask = BYTE.special_tokens["<|mask|>"]
    masked = (noisy["tokens"] == mask)[chosen].mean()
    same = (noisy["tokens"] == clean["tokens"])[chosen].mean()
    assert masked == pytest.approx(0.8, abs=0.03) and same == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(noisy["targets"], clean["tokens"])
    np.testing.assert_array_equal(noisy["tokens"][~chosen], clean["tokens"][~chosen])
    assert not chosen[clean["segments"] == 0].any()


@pytest.mark.parametrize("name", sorted(main.CORRUPTIONS))
def test_noise_depends_on_the_number_alone(name):
    transform = configs.resolve_builder(main.CORRUPTIONS[name])(BYTE, length=LENGTH)
    clean = rows(6)
    whole = transform(clean, np.arange(10, 16))
    part = transform({k: v[3:5] for k, v in clean.items()}, np.array([13, 14]))
    other = transform(clean, np.arange(20, 26))
    for field in whole:
        np.testing.assert_array_equal(whole[field][3:5], part[field])
    assert any((whole[field] != other[field]).any() for field in whole)


def test_whole_words_are_hidden_together():
    text = "alpha beta gamma delta epsilon zeta eta theta"
    ids = np.array([BYTE.encode(text)], np.int32)
    clean = {
        "tokens": ids,
        "segments": np.ones_like(ids),
        "positions": np.arange(ids.shape[1])[None],
    }
    transform = denoise.mlm(BYTE, length=ids.shape[1], rate=0.3, whole_words=True)
    noisy = transform({k: np.repeat(v, 20, axis=0) for k, v in clean.items()}, np.arange(20))
    for chosen in noisy["weights"] > 0:
        place = 0
        for word in text.split(" "):
            inside = chosen[place : place + len(word)]
            assert inside.all() or not inside.any()
            place += len(word) + 1


class Pieces:
    """Five pieces of text: play, ing, s, well, [MASK]; the space before a word is not its own."""

    vocab_size, special_tokens = 5, {"[MASK]": 4}

    def decode(self, ids):
        return (
            "".join(["play", "##ing", "##s", " well", ""][i] for i in ids).replace("##", "").strip()
        )


def test_whole_words_of_word_pieces():
    """By hand: "playings well" and "playing" are words of three, one and two pieces."""
    tokens = np.array([[0, 1, 2, 3, 0, 1]], np.int32)
    clean = {"tokens": tokens, "segments": np.array([[1, 1, 1, 1, 2, 2]])}
    transform = denoise.mlm(Pieces(), length=6, rate=0.2, whole_words=True)
    seen = set()
    for number in range(40):
        weights = transform(clean, np.array([number]))["weights"][0]
        seen.add("".join("x" if w else "." for w in weights))
    assert seen == {"xxx...", "...x..", "....xx"}


def test_span_rates_are_those_published():
    """15 % of the tokens in spans of 3 on average, over many rows of 512."""
    spans, _, decoder = denoise.span_lengths(512, 0.15, 3.0)
    hidden, found = decoder - spans - 1, []
    for seed in range(200):
        mask = denoise.random_spans(512, hidden, spans, np.random.default_rng(seed))
        edges = np.diff(np.r_[0, mask.astype(int), 0])
        found.append((mask.mean(), mask.sum() / (edges == 1).sum()))
    rate, mean = np.mean(found, axis=0)
    assert rate == pytest.approx(0.15, abs=0.002) and mean == pytest.approx(3.0, abs=0.1)


def test_t5_lengths_are_those_of_the_paper():
    assert denoise.span_lengths(568, 0.15, 3.0) == (28, 511, 114)


def test_random_spans_by_brute_force():
    for seed in range(50):
        hidden = denoise.random_spans(40, 12, 4, np.random.default_rng(seed))
        edges = np.flatnonzero(np.diff(np.r_[0, hidden.astype(int), 0]) == 1)
        assert hidden.sum() == 12 and len(edges) == 4 and not hidden[0] and hidden[-1]


def test_span_corruption_can_be_undone():
    """Put the decoder's spans back in place of the sentinels: the text is whole again."""
    clean = rows(30)
    clean["segments"][:] = 1
    clean["segments"][:, 50:] = 2
    noisy = denoise.span_corruption(BYTE, length=LENGTH)(clean, np.arange(30))
    sentinels = range(BYTE.vocab_size, BYTE.vocab_size + 64)
    for row in range(30):
        for segment in (1, 2):
            inside = noisy["encoder_segments"][row] == segment
            encoder = noisy["encoder_tokens"][row][inside].tolist()
            goal = noisy["segments"][row] == segment
            decoder = noisy["targets"][row][goal].tolist()
            if not decoder or decoder[-1] != BYTE.eos_id:
                continue  # cut at the row's end
            spans, current = {}, None
            for token in decoder[:-1]:
                if token in sentinels:
                    current = token
                    spans[current] = []
                else:
                    spans[current].append(token)
            rebuilt = [t for e in encoder for t in (spans.get(e) if e in spans else [e])]
            original = clean["tokens"][row][clean["segments"][row] == segment].tolist()
            assert rebuilt == original


def test_decoder_input_is_the_target_shifted():
    noisy = denoise.span_corruption(BYTE, length=LENGTH)(rows(5), np.arange(5))
    for row in range(5):
        for segment in (1, 2):
            inside = noisy["segments"][row] == segment
            tokens, targets = noisy["tokens"][row][inside], noisy["targets"][row][inside]
            if not inside.any():  # no span fell into this document
                continue
            assert tokens[0] == BYTE.pad_id
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
    np.testing.assert_array_equal(noisy["weights"] > 0, noisy["segments"] > 0)
    assert noisy["weights"].sum() > 5 * 8


def test_wrong_rate_is_refused():
    with pytest.raises(ConfigError, match="rate"):
        denoise.mlm(BYTE, length=8, rate=1.5)


def test_sentinels_beyond_the_model_are_refused():
    with pytest.raises(ConfigError, match=r"vocab_size=320"):
        denoise.span_corruption(BYTE, length=LENGTH, vocab_size=BYTE.vocab_size)
    denoise.span_corruption(BYTE, length=LENGTH, vocab_size=320)

# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods against brute force over full logits, and the rules for cutting texts."""

import numpy as np
import pytest

from llm.errors import ConfigError
from llm.generate import buckets, scoring
from llm.generate.scoring import Window


class Merging:
    """Two-character tokens where the pair exists, so that cutting a text changes its tokens."""

    bos_id, eos_id = None, 0

    def encode(self, text):
        ids, i = [], 0
        while i < len(text):
            step = 2 if text[i : i + 2] in ("ab", " c", "bc") else 1
            ids.append(sum(ord(c) * 1000**k for k, c in enumerate(text[i : i + step])))
            i += step
        return ids

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def ids(*pieces):
    return [token for piece in pieces for token in Merging().encode(piece)]


@pytest.mark.parametrize(
    "context, continuation, wanted",
    [
        # the space that ends the context becomes the continuation's
        ("x ", "c", Window(ids("x"), ids(" c"))),
        ("x  ", "c", Window(ids("x"), ids(" ", " c"))),
        ("x\n", "c", Window(ids("x"), ids("\n", "c"))),
        # encoded as one text, then cut after as many tokens as the context alone has
        ("xa", "b", Window(ids("x", "a"), [])),
        ("a", "bc", Window(ids("a"), ids("c"))),
        ("xb", "d", Window(ids("x", "b"), ids("d"))),
        # nothing before: the token that separates documents
        ("", "ab", Window([0], ids("ab"))),
        ("  ", "c", Window([0], ids(" ", " c"))),
    ],
)
def test_pairs_are_encoded_together_and_cut(context, continuation, wanted):
    assert scoring.encode_pair(Merging(), context, continuation) == wanted


def test_the_start_token_is_preferred_and_never_repeated():
    class Starts(Merging):
        bos_id = 97

    assert scoring.encode_pair(Starts(), "", "xy") == Window([97], ids("x", "y"))
    assert scoring.encode_pair(Starts(), "", "ax") == Window([97], ids("x"))


def test_windows_score_every_token_once_with_as_much_context_as_fits():
    windows = list(scoring.rolling_windows(range(1, 12), 0, 4))
    assert windows == [
        Window([0], [1, 2, 3, 4]),
        Window([4], [5, 6, 7, 8]),
        Window([7, 8], [9, 10, 11]),
    ]
    assert list(scoring.rolling_windows([], 0, 4)) == []
    assert list(scoring.rolling_windows([5], 0, 4)) == [Window([0], [5])]


def brute_force(lm, window):
    """Return the score in float64 from the logits of the whole text."""
    text = [*window.context, *window.continuation][-(lm.config.max_length + 1) :]
    padded = text[:-1] + [0] * (lm.config.max_length + 1 - len(text))
    logits = np.asarray(lm.logits([padded])[0], np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    total, greedy = 0.0, True
    for k, token in enumerate(reversed(window.continuation)):
        row = logprobs[len(text) - 2 - k]
        total += row[token]
        greedy &= token == int(row.argmax())
    return total, greedy


def random_windows(lm, n, seed=0):
    rng = np.random.default_rng(seed)
    windows = []
    for _ in range(n):
        sizes = rng.integers(1, 58), rng.integers(1, 7)
        windows.append(Window(*(rng.integers(0, lm.config.vocab_size, k).tolist() for k in sizes)))
    # one that greedy decoding gives, and one longer than the model
    greedy = lm.complete([windows[0].context], max_tokens=3)[0].tokens
    long = rng.integers(0, lm.config.vocab_size, 80).tolist()
    return [*windows, Window(windows[0].context, greedy), Window(long[:70], long[70:])]


def test_scores_equal_brute_force_and_long_contexts_are_cut_on_the_left(lm):
    windows = random_windows(lm, 12)
    scored = scoring.score(lm.model, lm.params, windows)
    for got, window in zip(scored, windows, strict=True):
        total, greedy = brute_force(lm, window)
        assert got.is_greedy == greedy
        assert got.logprob == pytest.approx(total, abs=1e-4)
    assert scored[-2].is_greedy


def test_scores_do_not_depend_on_the_batch_or_the_order(lm, monkeypatch):
    windows = random_windows(lm, 30)
    monkeypatch.setattr(scoring, "_SMALLEST", lm.config.max_length)
    order = np.random.default_rng(1).permutation(len(windows))
    alone = scoring.score(lm.model, lm.params, windows, max_batch=1)
    for size in (7, 32):  # and 1: three sizes of batch, one bucket of length
        shuffled = [windows[i] for i in order]
        got = scoring.score(lm.model, lm.params, shuffled, max_batch=size)
        difference = [
            abs(alone[i].logprob - one.logprob) for i, one in zip(order, got, strict=True)
        ]
        assert max(difference) <= 1e-5
        assert [alone[i].is_greedy for i in order] == [one.is_greedy for one in got]


def test_many_slices_of_scored_positions_add_up(lm, monkeypatch):
    windows = random_windows(lm, 6, seed=2)
    whole = scoring.score(lm.model, lm.params, windows, max_batch=8)
    monkeypatch.setattr(scoring, "_SLICE", 7)
    before = buckets.compiled()["score"]
    sliced = scoring.score(lm.model, lm.params, windows, max_batch=9, batch_tokens=9 * 64)
    assert buckets.compiled()["score"] == before  # the same shapes: the old program still
    scoring._score.clear_cache()
    sliced = scoring.score(lm.model, lm.params, windows, max_batch=8)
    np.testing.assert_allclose(
        [one.logprob for one in sliced], [one.logprob for one in whole], atol=1e-4
    )


def test_texts_are_scored_through_the_tokenizer(lm):
    pairs = [("hello ", "world"), ("", "abc")]
    encode = lm.tokenizer.encode
    wanted = [
        brute_force(lm, Window(encode("hello"), encode(" world"))),
        brute_force(lm, Window([lm.tokenizer.bos_id], encode("abc"))),
    ]
    for got, (total, greedy) in zip(lm.loglikelihood(pairs), wanted, strict=True):
        assert got == (pytest.approx(total, abs=1e-4), greedy)


def test_rolling_scores_are_the_sum_over_windows(lm):
    texts = ["short", "x" * 150, ""]
    got = lm.loglikelihood_rolling(texts)
    for value, text in zip(got, texts, strict=True):
        cut = scoring.rolling_windows(lm.tokenizer.encode(text), lm.tokenizer.bos_id, 64)
        assert value == pytest.approx(sum(brute_force(lm, w)[0] for w in cut), abs=1e-3)


def test_a_continuation_longer_than_the_model_is_refused(lm):
    with pytest.raises(ConfigError, match="65 tokens"):
        lm.loglikelihood([("a", "x" * 65)])
    assert lm.loglikelihood([]) == []

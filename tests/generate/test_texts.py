# SPDX-License-Identifier: Apache-2.0
"""Generated texts against repeated full forward passes, alone and in company."""

import numpy as np
import pytest

from llm.errors import ConfigError
from llm.generate import buckets
from llm.generate.requests import Request
from llm.generate.sampling import Settings

PROMPTS = ["hello", "a longer prompt", "x", "12345"]


def reference(lm, ids, n, choose=lambda logits, ids: int(np.argmax(logits))):
    """Choose n tokens by running the whole text through the model every time."""
    ids, chosen, logprobs = list(ids), [], []
    for _ in range(n):
        # What follows a position cannot matter to it: one padded shape serves all lengths.
        padded = ids + [0] * (lm.config.max_length - len(ids))
        logits = np.asarray(lm.logits([padded])[0, len(ids) - 1], np.float64)
        token = choose(logits.copy(), ids)
        logprobs.append(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        ids.append(token)
        chosen.append(token)
    return chosen, logprobs


def test_greedy_decoding_is_the_argmax_of_full_passes_and_so_are_its_logprobs(lm):
    requests = [Request(tuple(lm.tokenizer.encode(p)), 40) for p in PROMPTS]
    for request, got in zip(requests, lm.engine().complete(requests), strict=True):
        tokens, logprobs = reference(lm, request.tokens, 40)
        assert got.tokens == tokens and got.reason == "length"
        np.testing.assert_allclose(got.logprobs, logprobs, atol=1e-4)


def test_penalty_and_bias_apply_to_prompt_and_text_so_far(lm):
    settings = Settings(repetition_penalty=1.5, logit_bias=((70, 3.0), (71, -50.0)))

    def choose(logits, ids):
        logits[70] += 3
        logits[71] -= 50
        for token in set(ids):
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
        return int(np.argmax(logits))

    ids = tuple(lm.tokenizer.encode("abcabc"))
    request = Request(ids, 20, settings)
    (got,) = lm.engine().complete([request])
    assert got.tokens == reference(lm, ids, 20, choose)[0]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}]
)
def test_a_text_does_not_depend_on_its_neighbours(lm, options):
    together = lm.complete(PROMPTS, max_tokens=20, seed=11, **options)
    alone = [lm.complete(p, max_tokens=20, seed=11, **options)[0] for p in PROMPTS]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    backwards = lm.complete(PROMPTS[::-1], max_tokens=20, seed=11, **options)
    assert [c.text for c in backwards] == [c.text for c in together[::-1]]


def test_mixed_requests_share_a_batch(lm):
    ids = tuple(lm.tokenizer.encode("hello"))
    kinds = [Settings(), Settings(1.0, seed=1), Settings(1.0, top_k=3, seed=2), Settings(min_p=0.1)]
    requests = [Request(ids, 5 + 5 * i, kind) for i, kind in enumerate(kinds)]
    together = lm.engine().complete(requests)
    alone = [lm.engine().complete([r])[0] for r in requests]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [len(c.tokens) for c in together] == [5, 10, 15, 20]


def test_seeds_repeat_and_differ(lm):
    def sampled(prompts, seed):
        return lm.generate(prompts, max_tokens=16, temperature=1.0, seed=seed)

    assert sampled("hello", 3) == sampled("hello", 3) != sampled("hello", 4)
    copies = sampled(["hello"] * 4, 3)
    assert len(set(copies)) == 4 and copies[0] == sampled("hello", 3)[0]
    assert sampled(["hello"] * 2, [3, 3]) == [copies[0]] * 2
    with pytest.raises(ConfigError, match="2 seeds"):
        sampled(["hello"], [1, 2])


def test_text_ends_before_a_stop_string_wherever_tokens_end(lm):
    text = lm.generate("hello", max_tokens=40)[0]
    stop = text[6:9]
    start = text.index(stop)
    (got,) = lm.complete("hello", max_tokens=40, stop=["never there", stop])
    assert got.text == text[:start] and got.reason == "stop"
    assert len(got.tokens) < 40
    assert "".join(lm.stream("hello", max_tokens=40, stop=stop)) == text[:start]


def test_stop_ids_end_rows_on_the_device(lm):
    ids = tuple(lm.tokenizer.encode("hello"))
    free = lm.engine().complete([Request(ids, 30)])[0]
    stop = free.tokens[10]
    at = free.tokens.index(stop)
    requests = [Request(ids, 30, stop_ids=(stop, 271)), Request(ids, 30)]
    stopped, other = lm.engine().complete(requests)
    assert stopped.tokens == free.tokens[: at + 1] and stopped.reason == "stop"
    assert free.text.startswith(stopped.text.rstrip("\ufffd"))
    assert other.tokens == free.tokens and other.text == free.text


def test_pieces_join_to_the_text_and_hold_whole_characters(lm):
    for options in ({}, {"temperature": 1.0, "seed": 5}):
        (whole,) = lm.complete("naïve 你", max_tokens=50, **options)
        pieces = list(lm.stream_pieces("naïve 你", max_tokens=50, **options))
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert [piece.reason for piece in pieces if piece.reason] == [whole.reason]
        assert len(pieces) > 2


def test_what_does_not_fit_is_refused_not_cut(lm):
    with pytest.raises(ConfigError, match=r"The prompt has 60 tokens.*64 positions") as caught:
        lm.generate("x" * 60, max_tokens=5)
    assert "max_tokens <= 4" in str(caught.value)
    with pytest.raises(ConfigError, match="Shorten the prompt"):
        lm.stream("x" * 100)
    assert len(lm.complete("x" * 60, max_tokens=4)[0].tokens) == 4
    assert len(lm.complete("x" * 60)[0].tokens) <= 4  # the default takes what room there is
    with pytest.raises(ConfigError, match="asks for nothing"):
        lm.generate("x", max_tokens=0)
    with pytest.raises(ConfigError, match="empty"):
        lm.generate([[]], max_tokens=1)
    with pytest.raises(ConfigError, match="temperature"):
        lm.generate("x", temperature=-1)


def test_equal_shapes_share_programs(lm):
    lm.generate(PROMPTS, max_tokens=10)
    before = buckets.compiled()
    others = ["other", "words here", "", "!"]
    lm.generate(others, max_tokens=30, temperature=1.0, top_p=0.5, stop="z")
    lm.complete(["more"] * 3, max_tokens=25, repetition_penalty=1.2, min_p=0.1, seed=9)
    assert buckets.compiled() == before


def test_buckets_are_few_and_large_enough():
    sizes = {buckets.bucket(n, 16, 1000) for n in range(1, 1001)}
    assert len(sizes) <= 14 and max(sizes) == 1000
    assert all(n <= buckets.bucket(n, 16, 1000) <= max(16, 1.5 * n) for n in range(1, 1001))
    assert buckets.bucket(2000, 16, 1000) == 2000

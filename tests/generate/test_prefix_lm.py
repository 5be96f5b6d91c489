# SPDX-License-Identifier: Apache-2.0
"""Prefix language models: prompts see themselves both ways, in generation and in scoring.

The reference runs the whole text anew for every token, without a cache, under an explicit mask.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm
from llm import tokenizers
from llm.core.sharding import unbox
from llm.errors import ConfigError
from llm.generate import loading
from llm.models.adapters import Adapter
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer

PROMPTS = [[5, 17, 40, 9, 22, 31, 8], [60, 2, 33], [7] * 12]
MOST = 20


def _model(**fields):
    tokenizer = tokenizers.load("byte")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        n_heads=4,
        max_length=64,
        prefix_lm=True,
        init_std=0.3,  # far from uniform, so that masks decide tokens
        **fields,
    )
    params = unbox(Transformer(config).init(jax.random.key(1), jnp.zeros((1, 1), jnp.int32)))
    return loading.assemble(config, params["params"], tokenizer)


@pytest.fixture(scope="module")
def lm():
    return _model()


@functools.partial(jax.jit, static_argnums=0)
def _whole(model, params, tokens, segments, prefix):
    return model.apply({"params": params}, tokens, segments=segments, prefix=prefix)


def reference(lm, ids, seen):
    """Return logits [len(ids), V]; the first `seen` tokens are visible to all."""
    at = np.arange(64)[None]
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(ids)] = ids
    segments = (at < len(ids)).astype(np.int32)
    return np.asarray(_whole(lm.model, lm.params, tokens, segments, at < seen))[0, : len(ids)]


def _greedy(lm, prompt, most, seen):
    ids = list(prompt)
    while len(ids) < len(prompt) + most:
        ids.append(int(reference(lm, ids, seen)[-1].argmax()))
    return ids[len(prompt) :]


def test_prompts_see_themselves_both_ways(lm):
    """Prompts of unequal length in one batch, alone, and piece by piece."""
    made = lm.complete(PROMPTS, max_tokens=MOST)
    for prompt, one in zip(PROMPTS, made, strict=True):
        wanted = _greedy(lm, prompt, MOST, len(prompt))
        stop = [i for i, token in enumerate(wanted) if token in lm.tokenizer.stop_ids]
        assert one.tokens == wanted[: stop[0] + 1 if stop else None]
        logits = reference(lm, prompt + one.tokens, len(prompt))[len(prompt) - 1 : -1]
        logprobs = jax.nn.log_softmax(logits)[np.arange(len(one.tokens)), one.tokens]
        np.testing.assert_allclose(one.logprobs, logprobs, atol=1e-4)
    assert made[0].tokens != _greedy(lm, PROMPTS[0], len(made[0].tokens), 0)
    (alone,) = lm.complete([PROMPTS[1]], max_tokens=MOST)
    assert alone.tokens == made[1].tokens
    pieces = list(lm.stream_pieces(PROMPTS[0], max_tokens=MOST))
    assert [token for piece in pieces for token in piece.tokens] == made[0].tokens
    assert "".join(piece.text for piece in pieces) == made[0].text


def test_contexts_are_scored_both_ways(lm):
    pairs = [("def f(x):", " return x"), ("", "abc"), ("The", " end")]
    scored = lm.loglikelihood(pairs)
    for (context, text), (total, greedy) in zip(pairs, scored, strict=True):
        first = lm.tokenizer.encode(context) if context else []
        start = [] if lm.tokenizer.bos_id is None or context else [lm.tokenizer.bos_id]
        ids = [*start, *lm.tokenizer.encode(context + text)]
        seen = max(len(first), len(start))
        logits = reference(lm, ids, seen)[seen - 1 : -1]
        logprobs = jax.nn.log_softmax(logits)[np.arange(len(ids) - seen), ids[seen:]]
        assert total == pytest.approx(float(logprobs.sum()), abs=1e-3)
        assert greedy == bool((logits.argmax(-1) == ids[seen:]).all())
    causal = reference(lm, lm.tokenizer.encode("The end"), 0)
    both = reference(lm, lm.tokenizer.encode("The end"), 3)
    assert np.abs(causal - both).max() > 1e-2


def test_a_tuned_prefix_comes_before_the_prompt():
    """Virtual keys and a prompt that is read both ways: the same with and without a cache."""
    lm = _model(adapter=Adapter(name="prefix", length=3))
    (made,) = lm.complete([PROMPTS[0]], max_tokens=5)
    assert made.tokens == _greedy(lm, PROMPTS[0], len(made.tokens), len(PROMPTS[0]))


def test_what_a_prefix_lm_cannot_do_is_refused(lm, tmp_path):
    with pytest.raises(ConfigError, match="prefix language model"):
        lm.engine()
    with pytest.raises(ConfigError, match="exceeds the model's 64 positions"):
        lm.generate(["x" * 60], max_tokens=10)
    with pytest.raises(ConfigError, match="differs in prefix_lm"):
        lm.save(tmp_path / "hf", format="hf")
    with pytest.raises(ConfigError, match="differs in prefix_lm"):
        lm.save(tmp_path / "model.gguf", format="gguf")
    with pytest.raises(ConfigError, match="does not fit"):
        dataclasses.replace(lm.config, architecture="encoder").validate()
    lm.save(tmp_path / "native")
    assert llm.load(tmp_path / "native").config.prefix_lm

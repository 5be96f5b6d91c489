# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoders generate what Hugging Face's T5 does, alone or in a batch, whole or streamed."""

import importlib.util
from pathlib import Path

import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

import llm
from llm.errors import ConfigError
from llm.generate import loading, seq2seq
from llm.generate.requests import Request
from llm.generate.sampling import Settings

GOLDENS = Path(__file__).parent.parent / "goldens"


def _parity():
    spec = importlib.util.spec_from_file_location("parity", GOLDENS / "parity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = _parity()
IDS, LENGTHS = parity.hf_cases.tokens(), parity.hf_cases.LENGTHS
PROMPTS = [IDS[row, :size].tolist() for row, size in enumerate(LENGTHS)]
MOST = parity.hf_cases.GENERATED


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return llm.load(parity.write_folder("t5_v1_1", tmp_path_factory.mktemp("t5")))


def run(t5, prompts=PROMPTS, **fields):
    requests = [Request(tuple(prompt), MOST, **fields) for prompt in prompts]
    return seq2seq.complete(t5.model, t5.params, None, requests)


def test_greedy_is_that_of_transformers(t5, tmp_path):
    """Prompts of unequal length in one batch; T5 v1.1 here, v1.0 loaded beside it."""
    for lm, name in (
        (t5, "t5_v1_1"),
        (llm.load(parity.write_folder("t5", tmp_path / "t5")), "t5"),
    ):
        wanted = parity.golden(name)[1]["generated"]
        made = lm.complete(PROMPTS, max_tokens=MOST)
        assert [one.tokens for one in made] == wanted
        assert all(one.reason == "length" and len(one.logprobs) == MOST for one in made)


def test_a_stop_token_ends_its_row_only(t5):
    first, second = parity.golden("t5_v1_1")[1]["generated"]
    stop = second[1]
    assert stop not in first
    made = run(t5, stop_ids=(stop,))
    assert made[0].tokens == first and made[0].reason == "length"
    assert made[1].tokens == second[:2] and made[1].reason == "stop"


def test_samples_depend_on_prompt_and_seed_alone(t5):
    settings = Settings(temperature=1.5, top_k=20, seed=4)
    both = run(t5, settings=settings)
    (alone,) = run(t5, PROMPTS[1:], settings=settings)
    assert alone.tokens == both[1].tokens
    (other,) = run(t5, PROMPTS[1:], settings=settings._replace(seed=5))
    assert other.tokens != alone.tokens


def test_stream_yields_what_complete_returns(t5):
    request = Request(tuple(PROMPTS[0]), 40)
    pieces = list(seq2seq.stream(t5.model, t5.params, None, request))
    assert len(pieces) == 3  # two visits of the host and a rest
    (whole,) = seq2seq.complete(t5.model, t5.params, None, [request])
    assert [token for piece in pieces for token in piece.tokens] == whole.tokens
    assert pieces[-1].reason == "length"


@pytest.mark.parametrize(
    ("tokens", "most", "words"),
    [([], 4, "empty"), ([1], 0, "asks for nothing"), ([1] * 600, 4, "600 tokens")],
)
def test_what_cannot_be_served_is_refused(t5, tokens, most, words):
    with pytest.raises(ConfigError, match=words):
        seq2seq.complete(t5.model, t5.params, None, [Request(tuple(tokens), most)])


def test_a_tokenizer_says_what_it_puts_around_a_text(tmp_path):
    """T5's ends what the encoder reads; Llama's starts it; BERT's does both."""
    for start, end in ((False, True), (True, False), (True, True), (False, False)):
        model = tokenizers.Tokenizer(WordLevel({"a": 0, "<s>": 1, "</s>": 2}, unk_token="a"))
        parts = [*(["<s>"] if start else []), "$A", *(["</s>"] if end else [])]
        special = [("<s>", 1), ("</s>", 2)]
        model.post_processor = TemplateProcessing(single=" ".join(parts), special_tokens=special)
        model.save(str(tmp_path / "tokenizer.json"))
        assert loading.adds_tokens(tmp_path) == (start, end)

# SPDX-License-Identifier: Apache-2.0
"""A real model, SmolLM2-135M-Instruct in 4 bits, against what transformers makes of it.

SMOLLM2_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf bash scripts/test.sh --slow tests/models
(scripts/smollm2.sh fetches the file). The golden numbers are made by tests/goldens/smollm2.py.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

import llm

FILE = os.environ.get("SMOLLM2_GGUF", "")
GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = json.loads((GOLDENS / "smollm2.json").read_text())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FILE, reason="SMOLLM2_GGUF does not name the model's file"),
]


@pytest.fixture(scope="module")
def lm():
    assert hashlib.sha256(Path(FILE).read_bytes()).hexdigest() == GOLDEN["sha256"]
    return llm.load(FILE)


def strings():
    spec = importlib.util.spec_from_file_location("strings", GOLDENS / "strings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate(10_000, 0, tuple(GOLDEN["special"]))


def test_ten_thousand_strings_have_the_reference_ids(lm):
    encoded = lm.tokenizer.encode_batch(strings())
    size = len(encoded) // len(GOLDEN["blocks"])
    for number, digest in enumerate(GOLDEN["blocks"]):
        block = json.dumps(encoded[number * size : (number + 1) * size]).encode()
        assert hashlib.sha256(block).hexdigest()[:12] == digest, f"strings from {number * size}"
    special = set(lm.tokenizer.special_tokens.values())
    assert not special.intersection(*map(set, encoded))
    assert lm.tokenizer.encode(GOLDEN["passage"]) == GOLDEN["passage_ids"]


def test_chats_render_as_in_transformers(lm):
    for case in GOLDEN["chats"]:
        assert lm.tokenizer.apply_chat_template(case["chat"], case["prompt"]) == case["text"]
    for case in GOLDEN["prompts"]:
        prompt = case["prompt"]
        assert lm.encode_prompt(prompt) == case["ids"]


def test_logits_equal_transformers(lm):
    logits = np.asarray(lm.logits([GOLDEN["passage_ids"]])[0], np.float64)
    ours = logits[np.ix_(GOLDEN["places"], GOLDEN["columns"])]
    assert np.abs(ours - np.array(GOLDEN["logits"])).max() <= 1e-3


def test_greedy_texts_equal_transformers(lm):
    made = lm.complete([case["ids"] for case in GOLDEN["prompts"]], max_tokens=64)
    flips = []
    for case, completion in zip(GOLDEN["prompts"], made, strict=True):
        wanted = [token for token in case["greedy"] if token not in lm.tokenizer.stop_ids]
        if list(completion.tokens)[: len(wanted)] != wanted:
            flips.append((case["ids"], case["gap"]))
    assert not flips


def best_tokens(lm):
    """Return the likeliest successor at every place of the prompts and their greedy answers."""
    found = []
    for case in GOLDEN["prompts"]:
        ids = case["ids"] + case["greedy"]
        padded = ids + [0] * (-len(ids) % 128)  # few lengths, few programs; what follows is unseen
        found.append(np.asarray(lm.logits([padded]))[0, : len(ids)].argmax(-1))
    return np.concatenate(found)


def test_exported_files_give_the_same_model(lm, tmp_path):
    ids = [GOLDEN["passage_ids"]]
    logits = np.asarray(lm.logits(ids))
    lm.save(tmp_path / "f32.gguf", format="gguf", kind="F32")
    again = llm.load(tmp_path / "f32.gguf")
    assert np.array_equal(np.asarray(again.logits(ids)), logits)
    assert again.tokenizer.encode_batch(strings()[:500]) == lm.tokenizer.encode_batch(
        strings()[:500]
    )
    (tmp_path / "f32.gguf").unlink()
    lm.save(tmp_path / "q8.gguf", format="gguf", kind="Q8_0")
    smaller = llm.load(tmp_path / "q8.gguf")
    assert np.mean(best_tokens(smaller) == best_tokens(lm)) >= 0.98

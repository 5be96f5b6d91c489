# SPDX-License-Identifier: Apache-2.0
"""The feedback stage: what makers write, resumption after kills, and the one engine below."""

import dataclasses
import json
import random
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm import files, main
from llm.core import config as configs
from llm.core.sharding import unbox
from llm.errors import ConfigError, DataError, UserError
from llm.generate.language_model import LanguageModel
from llm.generate.loading import assemble, parameter_shapes
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.posttrain import feedback, makers
from llm.text import refusals
from llm.tokenizers.loading import load as load_tokenizer


class Writer:
    """A model whose answer is a function of chat and seed, and that dies after some calls."""

    def __init__(self, calls=10**9, weight=0.0):
        self.calls = calls
        self.params = {"weight": jnp.full(3, weight)}

    def generate(self, prompts, seed, **options):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        words = [random.Random(files.hash_json([p, s])) for p, s in zip(prompts, seed, strict=True)]
        return [f" answer {word.randrange(5)} " for word in words]

    def scores(self, answers):
        return np.asarray([float(chat[-1]["content"].split()[1]) for chat in answers])


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function (config name, writer, **overrides) -> (result, lines of its files)."""
    prompts = [{"prompt": f"Question {i}?"} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")

    def run(name, writer, folder="run", **overrides):
        monkeypatch.setattr(feedback, "_load", lambda config: writer)
        config = configs.load_file(f"configs/feedback/{name}.py")
        config.model, config.path = "writer", str(tmp_path / "prompts.jsonl")
        for key, value in overrides.items():
            config[key.replace("__", ".")] = value
        result = main.feedback(config, str(tmp_path / folder))
        found = {
            p.name: [json.loads(x) for x in p.read_text("utf-8").split("\n") if x.endswith("}")]
            for p in (tmp_path / folder).glob("*.jsonl")
        }
        return result, found

    return run


def test_best_of_is_the_best_by_a_plain_loop(start, monkeypatch):
    writer = Writer()
    monkeypatch.setattr(makers, "SCORERS", {"judge": lambda setting: lambda p, a: list(own(p, a))})

    def own(prompt, answers):
        return writer.scores([makers.said(a) for a in answers])

    scorer = {"name": "judge"}
    maker = {"name": "best_of", "n": 4, "least": 3.0, "margin": 1.0, "scorer": scorer}
    result, found = start("tiny", writer, maker=maker)
    assert result["n"] == 20 and result["metrics"]["score_best"]["value"] > 2
    chats, pairs = [], []
    for record in found["records.jsonl"]:
        value = {a: int(a.split()[1]) for a in record["answers"]}
        assert len(value) == len(record["answers"]) >= 1
        best, worst = max(value, key=value.get), min(value, key=value.get)
        if value[best] >= 3:
            chats.append(best)
        if value[best] - value[worst] > 1:
            pairs.append((best, worst))
    assert [chat["messages"][-1]["content"] for chat in found["chats.jsonl"]] == chats
    told = found["preferences.jsonl"]
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in told] == pairs
    assert all(2 <= len(one["answers"]) <= 4 for one in found["answers.jsonl"])
    writers = {a["model"] for one in found["answers.jsonl"] for a in one["answers"]}
    assert writers == {result["model"]} and result["model"].startswith("writer@")
    assert 0 < len(pairs) < 20 and 0 < len(chats) < 20


def test_verifiers_score_the_expected_answer(start, tmp_path):
    rows = [{"prompt": f"Question {i}?", "answer": "It is 3"} for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    scorer = {"name": "verifier", "rewards": {"number": {"weight": 2.0}}}
    _, found = start("tiny", Writer(), maker={"name": "best_of", "least": 2.0, "scorer": scorer})
    kept = [chat["messages"][-1]["content"] for chat in found["chats.jsonl"]]
    right = [r for r in found["records.jsonl"] if "answer 3" in r["answers"]]
    assert set(kept) == {"answer 3"} and len(kept) == len(right) > 0
    assert all(p["chosen"][0]["content"] == "answer 3" for p in found["preferences.jsonl"])


def test_a_reward_model_scores_whole_chats(start, tmp_path):
    """Its place among the answers is that of the model's own output at each answer's stop token."""
    tokenizer = load_tokenizer("byte")
    shape = TransformerConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=96
    )
    judge = Transformer(dataclasses.replace(shape, head="sequence", n_classes=1))
    params = unbox(judge.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    params["classifier"]["kernel"] = np.random.default_rng(1).normal(size=(16, 1))
    assemble(judge.config, params, tokenizer, starts_texts=True).save(str(tmp_path / "judge"))
    scorer = {"name": "reward_model", "model": str(tmp_path / "judge")}
    _, found = start("tiny", Writer(), maker={"name": "best_of", "scorer": scorer})
    for record in found["records.jsonl"]:
        chats = [record["prompt"] + makers.said(answer) for answer in record["answers"]]
        ids = [tokenizer.encode_answer(chat)[0] for chat in chats]
        scores = [float(judge.apply({"params": params}, np.array([i]))[0, -1, 0]) for i in ids]
        np.testing.assert_allclose(record["scores"], scores, rtol=1e-4, atol=1e-6)
    best = [r["answers"][int(np.argmax(r["scores"]))] for r in found["records.jsonl"]]
    assert [chat["messages"][-1]["content"] for chat in found["chats.jsonl"]] == best


def test_what_is_no_reward_model_is_refused(start, tmp_path):
    tokenizer = load_tokenizer("byte")
    shape = TransformerConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=96
    )
    model = Transformer(shape)
    params = unbox(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    assemble(shape, params, tokenizer, starts_texts=True).save(str(tmp_path / "judge"))
    for place, named in (("judge", "score"), ("nothing", "nothing")):
        scorer = {"name": "reward_model", "model": str(tmp_path / place)}
        with pytest.raises(UserError, match=named):
            start("tiny", Writer(), maker={"name": "best_of", "scorer": scorer})


def test_a_killed_run_ends_with_the_same_files(start, tmp_path):
    config = {"chunk": 3}
    start("revise", Writer(), "whole", **config)
    for calls in (2, 4, 7, 9):  # in the middle of a chunk
        with pytest.raises(KeyboardInterrupt):
            start("revise", Writer(calls), "killed", **config)
        with (tmp_path / "killed" / "records.jsonl").open("a") as file:
            file.write('{"id": "torn')
    start("revise", Writer(), "killed", chunk=5)
    for name in ("chats.jsonl", "preferences.jsonl", "results.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_revisions_are_chats_and_pairs(start):
    result, found = start("revise", Writer())
    for record, chat in zip(found["records.jsonl"], found["chats.jsonl"], strict=True):
        assert chat["messages"] == [*record["prompt"], *makers.said(record["steps"][0]["revision"])]
    changed = [r for r in found["records.jsonl"] if r["answer"] != r["steps"][-1]["revision"]]
    assert len(found["preferences.jsonl"]) == len(changed)
    assert result["metrics"]["changed"]["value"] == len(changed) / 20
    assert len({r["steps"][0]["principle"] for r in found["records.jsonl"]}) == 4


def test_refusals_decline_and_twins_are_answered(start):
    _, alone = start("refusals", None, "alone", path="")
    assert len(alone["chats.jsonl"]) == 48 and alone["preferences.jsonl"] == []
    _, found = start("refusals", Writer(), "both", path="")
    assert len(found["chats.jsonl"]) == 96 and len(found["preferences.jsonl"]) == 48
    held_out = {r.text for r in refusals.requests("eval")}
    for pair in found["preferences.jsonl"]:
        assert refusals.is_refusal(pair["chosen"][0]["content"])
        assert not refusals.is_refusal(pair["rejected"][0]["content"])
        assert pair["prompt"][0]["content"] not in held_out


def test_judged_pairs_are_measured_against_gold(start, tmp_path, monkeypatch):
    rows = [
        {"prompt": f"Q{i}", "chosen": f"worth {i % 7}", "rejected": f"worth {i * 3 % 5}"}
        for i in range(60)
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")

    def compare(lm, items, criterion, chat):
        worth = [[float(text.split()[1]) for text in item[1:]] for item in items]
        return [makers.judging.Verdict(a - b + 9, b - a + 9) for a, b in worth]

    monkeypatch.setattr(makers.judging, "compare", compare)
    result, found = start("judge", SimpleNamespace(params={}))
    expected = [i % 7 > i * 3 % 5 for i in range(60)]
    ties = [i % 7 == i * 3 % 5 for i in range(60)]
    assert result["n"] == 60 and len(found["preferences.jsonl"]) == 60 - sum(ties)
    for pair in found["preferences.jsonl"]:
        chosen, rejected = (float(pair[s][0]["content"].split()[1]) for s in ("chosen", "rejected"))
        assert chosen > rejected and pair["meta"]["lean"] == 9
    gold = [record["gold"] for record in found["records.jsonl"]]
    assert 15 < sum(gold) < 45  # the better one stands first about every second time
    right = [e or (t and not g) for e, t, g in zip(expected, ties, gold, strict=True)]
    assert result["metrics"]["agreement"]["value"] == pytest.approx(np.mean(right))


def test_other_settings_are_refused(start, tmp_path):
    start("revise", Writer())
    with pytest.raises(DataError, match="another seed"):
        start("revise", Writer(), seed=1)
    with pytest.raises(DataError, match="another model"):
        start("revise", Writer(weight=1.0))
    with pytest.raises(ConfigError, match="at least 1"):
        start("revise", Writer(), chunk=0)
    with pytest.raises(ConfigError, match="principals"):
        start("revise", Writer(), maker={"name": "revise", "principals": ("x",)})
    with pytest.raises(ConfigError, match="best_of"):
        start("revise", Writer(), maker={"name": "bestof"})
    (tmp_path / "prompts.jsonl").write_text('{"question": 1}', "utf-8")
    with pytest.raises(DataError, match="record 1"):
        start("revise", Writer(), "other")


def test_a_real_model_writes_the_same_in_any_chunks(start):
    tokenizer = load_tokenizer("byte")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=512
    )
    model, generator = Transformer(config), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(generator.normal(0, 0.3, leaf.shape), jnp.float32),
        unbox(parameter_shapes(model)),
    )
    lm = LanguageModel(config, model, params, tokenizer)
    lm.encode_prompt = lambda chat: tokenizer.encode(chat[0]["content"])[-400:]
    more = {"limit": 5, "sampling": {"max_tokens": 6, "temperature": 1.0}}
    found = [start("tiny", lm, f"by{n}", chunk=n, **more)[1] for n in (1, 5)]
    assert found[0] == found[1] and len(found[0]["records.jsonl"]) == 5
    assert max(len(record["answers"]) for record in found[0]["records.jsonl"]) > 1

# SPDX-License-Identifier: Apache-2.0
import json
import math
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from llm import files
from llm.core import checkpoint
from llm.core.config import load_file
from llm.data import prepare
from llm.data.feed import Feed
from llm.data.rows import open_rows
from llm.errors import ConfigError, DataError
from llm.eval import baseline, results, stage
from llm.text import ngrams

CONFIGS = Path(__file__).parents[2] / "configs" / "eval"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write a folder of documents about functions with two splits."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, size in (("train", 40), ("validation", 12)):
        lines = [
            json.dumps(
                {
                    "text": f"pack.{split}{i}\n\ndef {split}{i}(x)\n\nReturn {i} times {split}.",
                    "meta": {
                        "signature": f"def {split}{i}(x)",
                        "qualname": f"{split}{i}",
                        "module": "pack",
                        "summary": f"Return {i} times {split}.",
                    },
                }
            )
            for i in range(size)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture(scope="module")
def pretrained(corpus, tiny_lm, tmp_path_factory):
    """Write what a run of three steps leaves: config, rows, tokenizer, checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    tiny_lm.save(folder)
    prepare.prepare_documents(
        corpus, tiny_lm.tokenizer, 32, folder / "rows" / "data" / "train", split="train"
    )
    with checkpoint.Checkpointer(folder / "checkpoints", asynchronous=False) as writer:
        writer.save(3, {"params": tiny_lm.params}, {"tokenizer_hash": tiny_lm.tokenizer.hash})
    settings = files.read_json(folder / "config.json")
    more = {"seed": 5, "train": {"batch_size": 4}, "data": {"source": "documents"}}
    files.write_json(folder / "config.json", {**settings, **more})
    return str(folder)


def test_a_run_of_all_offline_kinds(corpus, pretrained, tmp_path, capsys):
    config = load_file(str(CONFIGS / "tiny.py"))
    config.model = config.pretrain = pretrained
    config.corpus = corpus
    config.tasks.samples.max_tokens = 4
    found = stage.run(config, str(tmp_path))
    assert [entry["task"] for entry in found] == list(config.tasks)
    table = capsys.readouterr().out
    for entry in found:
        assert entry["task"] in table and entry["n"] > 0
        assert files.read_json(tmp_path / "results" / f"{entry['task']}.json") == entry
        assert all({"value", "stderr"} <= set(metric) for metric in entry["metrics"].values())
    by_task = {entry["task"]: entry for entry in results.read(str(tmp_path))}
    assert "items" not in by_task["which_function"]
    assert by_task["which_function"]["metrics"]["acc"]["chance"] == 0.25
    assert by_task["held_out_text"]["n"] == by_task["ngram_same_tokens"]["n"] == 12
    same, whole = (by_task[f"ngram_{name}"] for name in ("same_tokens", "whole_corpus"))
    assert same["trained_tokens"] < whole["trained_tokens"]


def test_a_second_run_repeats_nothing_and_a_change_repeats_one(corpus, pretrained, tmp_path):
    config = ConfigDict(
        {
            "model": pretrained,
            "dtype": "float32",
            "tasks": {
                "a": {"kind": "kneser_ney", "documents": corpus, "train": corpus},
                "b": {"kind": "kneser_ney", "documents": corpus, "train": corpus, "order": 2},
            },
            "report": {"console": False},
        }
    )
    first = stage.run(config, str(tmp_path))
    again = stage.run(config, str(tmp_path))
    assert first == again
    config.tasks.b.order = 3
    changed = stage.run(config, str(tmp_path))
    assert changed[0] == first[0] and changed[1]["key"] != first[1]["key"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "empty"),
        ({"x": {"kind": "perplexty"}}, "Did you mean 'perplexity'"),
        ({"x": {"kind": "perplexity", "document": "y"}}, "Did you mean 'documents'"),
        ({"x": {"kind": "multiple_choice"}}, "path is missing"),
    ],
)
def test_wrong_tasks_are_refused_before_the_model_is_read(tasks, message, tmp_path):
    config = ConfigDict({"model": "nowhere", "dtype": "float32", "tasks": tasks, "report": {}})
    with pytest.raises(ConfigError, match=message):
        stage.run(config, str(tmp_path))


def test_seen_tokens_are_those_of_the_steps(pretrained, tiny_lm):
    rows = open_rows(Path(pretrained) / "rows" / "data" / "train")
    feed = Feed({"data": rows}, seed=5, batch_size=4)
    expected: list[int] = []
    for row in sorted({row for step in range(3) for _, row in feed.ids(step)}):
        batch = rows.take([row])
        expected += batch["targets"][0][batch["segments"][0] > 0].tolist()
    sequences = list(baseline.seen_sequences(pretrained))
    assert [int(token) for sequence in sequences for token in sequence[1:]] == expected
    starts = [sequence[0] == tiny_lm.tokenizer.bos_id for sequence in sequences]
    assert any(starts) and not all(starts)


def test_baseline_against_token_by_token(corpus, tiny_lm):
    found = baseline.evaluate(tiny_lm, documents=corpus, train=corpus, order=3, limit=2)
    tokenizer = tiny_lm.tokenizer
    train = list(baseline.corpus_sequences(corpus, tokenizer, [tokenizer.bos_id]))
    model = ngrams.train(train, tiny_lm.config.vocab_size, 3)
    bits, n_bytes = 0.0, 0
    for i in range(2):
        text = f"pack.validation{i}\n\ndef validation{i}(x)\n\nReturn {i} times validation."
        context = [tokenizer.bos_id]
        for token in tokenizer.encode(text):
            context.append(token)
            bits -= ngrams.log_probs(model, context)[-1] / math.log(2)
        n_bytes += len(text.encode())
    assert found["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits / n_bytes)


def test_baseline_needs_one_source(corpus, tiny_lm, tmp_path):
    for options in ({}, {"run": "a", "train": "b"}):
        with pytest.raises(ConfigError, match="either"):
            baseline.evaluate(tiny_lm, documents=corpus, **options)
    files.write_json(tmp_path / "config.json", {})
    with pytest.raises(DataError, match="no checkpoints"):
        list(baseline.seen_sequences(str(tmp_path)))


def test_numbers_that_are_not_finite_stay_out_of_json(tmp_path):
    outcome = {"n": 1, "metrics": {"x": {"value": 1.0, "stderr": float("nan")}}, "items": [1]}
    entry = results.finish("t", "kind", outcome)
    results.write(str(tmp_path), [entry])
    assert json.loads((tmp_path / "results.json").read_text())[0]["metrics"]["x"]["stderr"] is None
    assert results.rows([entry])[0][3] == "–"


def test_answers_in_chat_form(tiny_lm):
    from llm.eval.multiple_choice import answers

    (scored,) = answers(tiny_lm, [("Which?", "That one.")])
    chat = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "That one."}]
    ids, weights = tiny_lm.tokenizer.encode_chat(chat)
    logits = np.asarray(tiny_lm.logits(np.array([ids])), np.float64)[0]
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = sum(logps[i - 1, token] for i, token in enumerate(ids) if weights[i] > 0)
    assert scored[0] == pytest.approx(total, abs=1e-3)

# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from llm.eval import multiple_choice

pytest.importorskip(
    "lm_eval", reason='the harness adapter needs lm-eval: pip install "jax-llm[eval]"'
)


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    records = [
        {
            "query": f"Question {i}: what?",
            "choices": [f"answer {i}", f"é{i * 7}", "no"],
            "gold": i % 3,
        }
        for i in range(12)
    ]
    file.write_text("\n".join(json.dumps(record) for record in records))
    return file


def test_native_scores_are_the_harness_scores(tiny_lm, questions, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.api.task import ConfigurableTask

    from llm.eval.harness import evaluate

    task = ConfigurableTask(
        config={
            "task": "local_questions",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(questions)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )
    found = evaluate(tiny_lm, [task], bootstrap_iters=0)["results"]["local_questions"]
    ours = multiple_choice.evaluate(tiny_lm, path=str(questions))["metrics"]
    assert found["acc,none"] == ours["acc"]["value"]
    assert found["acc_norm,none"] == ours["acc_norm"]["value"]


def test_the_other_requests(tiny_lm):
    from lm_eval.api.instance import Instance

    from llm.eval.harness import HarnessModel

    model = HarnessModel(tiny_lm)

    def requests(kind, *arguments):
        return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]

    texts = [("one text",), ("another é",)]
    rolled = model.loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    assert rolled == tiny_lm.loglikelihood_rolling([text for (text,) in texts])
    pairs = [("context", " more"), ("", "alone")]
    expected = tiny_lm.loglikelihood(pairs)
    assert model.loglikelihood(requests("loglikelihood", *pairs)) == expected
    inner = model._loglikelihood_tokens(
        [(pair, model.tok_encode(pair[0]), model.tok_encode(pair[1])) for pair in pairs[:1]]
    )
    assert inner[0][0] == pytest.approx(expected[0][0], abs=1e-4)
    settings = {"until": ["\n"], "max_gen_toks": 5}
    (answer,) = model.generate_until(requests("generate_until", ("x" * 500, settings)))
    assert len(answer) <= 5
    chat = model.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert chat.endswith("<|assistant|>") and model.chat_template()

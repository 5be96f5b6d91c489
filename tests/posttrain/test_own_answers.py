# SPDX-License-Identifier: Apache-2.0
"""Distillation on the student's own answers: whose they are, what is learned, that it resumes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm
from llm import main
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.core.sharding import unbox
from llm.errors import ConfigError, DataError
from llm.generate import loading
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.posttrain import own_answers, prompts
from llm.tokenizers import load
from tests import runs

LENGTH, BATCH, ANSWER = 32, 8, 4


def save(place, seed, scale=1.0):
    shape = TransformerConfig(
        vocab_size=320, n_layers=1, d_model=32, n_heads=2, d_ff=64, max_length=64
    )
    params = unbox(Transformer(shape).init(jax.random.key(seed), jnp.zeros((1, 4), int))["params"])
    params = jax.tree.map(lambda p: p * scale, params)
    loading.assemble(shape, params, load("byte"), starts_texts=True).save(place)
    return str(place)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student, and a teacher that is surer of itself."""
    place = tmp_path_factory.mktemp("models")
    return save(place / "student", 0), save(place / "teacher", 1, scale=2.0)


@pytest.fixture(scope="module")
def start(models):
    return llm.load(models[0])


def make(start, chat=True, **options):
    tasks = prompts.puzzles(count=40, size=3, held_out=8)["train"]
    if not chat:
        records = [{"prompt": "max 123", "answer": "3"}]
        tasks = prompts.gather(records, False)
    return own_answers.OwnAnswers(
        own_answers.check({"max_tokens": ANSWER, **options}),
        tasks,
        start,
        start.model,
        batch_size=BATCH,
        length=LENGTH,
        seed=3,
    )


def said(rows, b):
    """Return the ids that carry weight in a row."""
    return rows["targets"][b][rows["weights"][b] > 0].tolist()


def test_the_student_answers(start):
    source = make(start, temperature=0.0)
    rows = source.batch(2, start.params)
    for b in range(BATCH):
        first = int(np.argmax(rows["weights"][b]))
        prompt = rows["tokens"][b][: first + 1].tolist()
        engine = start.generate([prompt], max_tokens=ANSWER, temperature=0)[0]
        kept = [i for i in said(rows, b) if i not in start.tokenizer.stop_ids]
        assert start.tokenizer.decode(kept) == engine
    assert rows["weights"].sum(axis=1).max() <= ANSWER
    assert source.metrics() == {"answers/own": 1.0, "answers/length": rows["weights"].sum() / BATCH}


def test_other_batches_hold_the_answers_of_the_data(start):
    source = make(start, share=0.0)
    rows = source.batch(0, start.params)
    answers = {tuple(task.ids): task.answer for task in source.tasks}
    for b in range(BATCH):
        first = int(np.argmax(rows["weights"][b]))
        expected = answers[tuple(rows["tokens"][b][: first + 1].tolist())]
        *text, last = said(rows, b)
        assert start.tokenizer.decode(text) == expected
        assert last in start.tokenizer.stop_ids


def test_a_batch_is_a_function_of_seed_step_and_parameters(start):
    one, two = make(start, share=0.5), make(start, share=0.5)
    steps = [one.batch(step, start.params) for step in range(12)]
    owned = one._measured
    assert 2 <= sum(row["own"] for row in owned) <= 10
    for step in (7, 3):
        again = two.batch(step, start.params)
        assert set(again) == set(own_answers.FIELDS)
        for name, values in again.items():
            np.testing.assert_array_equal(values, steps[step][name])
    assert steps[3]["tokens"].tobytes() != steps[4]["tokens"].tobytes()


def config_of(models, steps=30, **more):
    config = configs.load_file(f"{runs.ROOT}/configs/posttrain/gkd_puzzle.py")
    config.init["from"], config.objective.teacher = models
    config.data.update(size=3, count=40, held_out=16)
    config.answers.update(max_tokens=ANSWER, share=0.75, rows=BATCH)
    config.train.update(steps=steps, batch_size=BATCH, log_every=1, eval_every=steps)
    config.schedule.peak = 2e-2
    config.checkpoint.every = 10
    for key, value in more.items():
        config.train[key] = value
    return config


def test_a_run_nears_its_teacher_and_resumes_exactly(models, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main.posttrain(config_of(models), str(whole))
    lines = read_lines(whole / "metrics.jsonl")
    found = [x["eval/validation/divergence"] for x in lines if "eval/validation/divergence" in x]
    assert found[-1] < 0.5 * found[0]
    assert {"answers/own", "answers/length"} <= {key for line in lines for key in line}

    main.posttrain(config_of(models, stop_after=10), str(parts))
    main.posttrain(config_of(models), str(parts))
    (step, tree, losses), (same, other, again) = runs.result(whole), runs.result(parts)
    assert step == same and losses == again
    runs.same_bits(tree, other)


def test_what_does_not_fit_is_named(models, start, tmp_path):
    config = config_of(models)
    config.objective.teacher = "rows"
    with pytest.raises(ConfigError, match="yet to be drawn"):
        main.posttrain(config, str(tmp_path / "run"))
    config = config_of(models)
    config.objective = configs.load_file(f"{runs.ROOT}/configs/posttrain/dpo.py").objective
    with pytest.raises(ConfigError, match="objective of prompts"):
        main.posttrain(config, str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"share=1\.5"):
        own_answers.check({"share": 1.5})
    with pytest.raises(ConfigError, match="shares"):
        own_answers.check({"shares": 1})
    with pytest.raises(DataError, match="no chat with an answer"):
        make(start, chat=False, share=0.5)
    with pytest.raises(DataError, match="prompts changed"):
        make(start).restore({"tasks": "other"})

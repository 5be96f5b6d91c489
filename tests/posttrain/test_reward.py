# SPDX-License-Identifier: Apache-2.0
"""Reward models: the loss, the token that is scored, rankings, and a run that learns to prefer."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm
from llm import main, tokenizers
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.core.sharding import unbox
from llm.data import examples, prepare, rows
from llm.errors import ConfigError, DataError
from llm.generate import loading
from llm.models import pooling
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.posttrain import reward

ROOT = Path(__file__).resolve().parents[2]
BYTE = tokenizers.load("byte")
SHAPE = TransformerConfig(
    vocab_size=BYTE.vocab_size, n_layers=1, d_model=32, n_heads=2, d_ff=64, max_length=64
)


def _scorer(config=SHAPE, **fields):
    made = Transformer(dataclasses.replace(config, head="sequence", n_classes=1, **fields))
    params = unbox(made.init(jax.random.key(1), np.zeros((1, 8), int))["params"])
    params["classifier"]["kernel"] = np.random.default_rng(0).normal(size=(32, 1))
    return made, params


def test_scores_ignore_padding_and_company():
    made, params = _scorer()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 200, (3, 12)).astype(np.int32)
    sizes = np.array([12, 5, 9])
    segments = (np.arange(12) < sizes[:, None]).astype(np.int32)
    together = pooling.scores(made, params, tokens, segments)
    for row, size in enumerate(sizes):
        alone = made.apply({"params": params}, tokens[row : row + 1, :size])
        np.testing.assert_allclose(together[row], alone[0, -1, 0], rtol=1e-5)


def test_the_objective_reads_the_stop_token_of_the_answer(tmp_path):
    made, params = _scorer()
    pair = {"prompt": "q", "chosen": "good", "rejected": "so bad", "margin": 0.5}
    prepare.prepare_preferences([pair], BYTE, 48, tmp_path)
    batch = rows.open_rows(tmp_path).take([0])
    objective = reward.reward(made, centre=0.1, margin=2.0)
    chosen, rejected = (
        float(made.apply({"params": params}, np.array([ids]))[0, -1, 0])
        for ids in (
            BYTE.encode_chat(
                [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
            )[0]
            for text in ("good", "so bad")
        )
    )
    expected = np.log1p(np.exp(-(chosen - rejected - 1.0))) + 0.1 * (chosen + rejected) ** 2
    sums = objective.loss(params, (), batch, None)
    np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-5)
    blank = {name: np.concatenate([v, np.zeros_like(v)]) for name, v in batch.items()}
    padded = objective.loss(params, (), blank, None)
    assert float(padded["loss"][1]) == 1
    np.testing.assert_allclose(padded["loss"][0], sums["loss"][0], rtol=1e-6)


def test_rankings_are_all_their_pairs(tmp_path):
    record = {"prompt": "q", "ranking": ["a", "b", "c", "d"]}
    pairs = [(p["chosen"], p["rejected"]) for p in examples.pairs_of(record)]
    assert pairs == list(itertools.combinations("abcd", 2))
    assert prepare.prepare_preferences([record], BYTE, 32, tmp_path)["rows"] == 6
    with pytest.raises(DataError, match="fewer than two"):
        list(examples.pairs_of({"ranking": ["a"]}))
    with pytest.raises(DataError, match="margin"):
        bad = {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "wide"}
        prepare.prepare_preferences([bad], BYTE, 32, tmp_path / "bad")


def test_the_objective_wants_one_score():
    with pytest.raises(ConfigError, match="one score per text"):
        reward.reward(Transformer(SHAPE))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    params = unbox(Transformer(SHAPE).init(jax.random.key(0), np.zeros((1, 8), int))["params"])
    place = tmp_path_factory.mktemp("base") / "base"
    loading.assemble(SHAPE, params, BYTE, starts_texts=True).save(place)
    return place


def test_a_run_learns_to_prefer_and_scores_from_its_workdir(base, tmp_path):
    """Digits are better the larger they are: learned from rankings, tested on other prompts."""
    rng = np.random.default_rng(0)
    records = [
        {"prompt": f"{i}?", "ranking": [str(d) for d in sorted(rng.permutation(10)[:3])[::-1]]}
        for i in range(160)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(record) for record in records))
    config = configs.load_file(str(ROOT / "configs" / "posttrain" / "reward.py"))
    config.init["from"] = str(base)
    config.data = {"source": "preferences", "path": str(data), "length": 24, "validation": 0.2}
    config.train.update(steps=60, batch_size=16, eval_every=60, eval_first=False)
    config.schedule.peak = 1e-2
    config.checkpoint.every = 60
    main.train(config, str(tmp_path / "run"))
    key = "eval/validation/reward_accuracy"
    (found,) = [r[key] for r in read_lines(tmp_path / "run" / "metrics.jsonl") if key in r]
    assert found > 0.9
    lm = llm.load(str(tmp_path / "run"))
    answers = [
        [{"role": "user", "content": "new?"}, {"role": "assistant", "content": str(d)}]
        for d in range(10)
    ]
    found = lm.scores(answers, batch=4)
    assert found.dtype == np.float32 and found.shape == (10,)
    assert np.corrcoef(found, np.arange(10))[0, 1] > 0.9
    ids = [BYTE.encode_answer(chat)[0] for chat in answers]
    np.testing.assert_allclose(lm.scores(ids), found, atol=1e-5)
    tokens = jnp.array(ids)  # all of one length
    np.testing.assert_allclose(pooling.scores(lm.model, lm.params, tokens), found, atol=1e-5)
    with pytest.raises(ConfigError, match="no score head"):
        llm.load(str(base)).scores(answers)
    with pytest.raises(ConfigError, match="no ids"):
        lm.scores(["text"])

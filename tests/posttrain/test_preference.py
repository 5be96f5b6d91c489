# SPDX-License-Identifier: Apache-2.0
"""Preference losses against plain float64 formulas; questions built from documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding
from llm.errors import DataError
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.posttrain import preference, questions

CONFIG = TransformerConfig(vocab_size=32, n_layers=1, d_model=16, n_heads=2, d_ff=32, max_length=12)
B, T = 4, 12


@pytest.fixture(scope="module")
def model():
    made = Transformer(CONFIG)
    tokens = jnp.zeros((1, T), jnp.int32)
    params = [sharding.unbox(made.init(jax.random.key(i), tokens)["params"]) for i in range(2)]
    return made, *params


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    made = {}
    for side in ("chosen_", "rejected_"):
        tokens = rng.integers(0, 32, (B, T + 1))
        size = rng.integers(4, T + 1, B)
        inside = np.arange(T) < size[:, None]
        made[side + "tokens"] = tokens[:, :-1].astype(np.int32)
        made[side + "targets"] = tokens[:, 1:].astype(np.int32)
        made[side + "weights"] = (inside & (np.arange(T) >= 2)).astype(np.float32)
        made[side + "segments"] = inside.astype(np.int32)
        made[side + "positions"] = np.tile(np.arange(T), (B, 1)).astype(np.int32)
    made["chosen_weights"][3] = 0  # a blank row must not count
    made["rejected_weights"][3] = 0
    return made


def logps(model, params, batch, side):
    logits = model.apply(
        {"params": params},
        batch[side + "tokens"],
        segments=batch[side + "segments"],
        positions=batch[side + "positions"],
    )
    logits = np.asarray(logits, np.float64)
    peak = logits.max(-1, keepdims=True)
    normal = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    chosen = np.take_along_axis(normal, batch[side + "targets"][..., None], -1)[..., 0]
    return (chosen * batch[side + "weights"]).sum(-1)


def expected(model, params, reference, batch):
    (pc, pr), (rc, rr) = (
        [logps(model, p, batch, side) for side in ("chosen_", "rejected_")]
        for p in (params, reference)
    )
    return pc, pr, rc, rr


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_dpo(model, batch, epsilon):
    made, params, reference = model
    pc, pr, rc, rr = expected(made, params, reference, batch)
    beta = 0.3
    margin = beta * ((pc - rc) - (pr - rr))
    each = (1 - epsilon) * np.log1p(np.exp(-margin)) + epsilon * np.log1p(np.exp(margin))
    objective = preference.dpo(made, beta=beta, label_smoothing=epsilon)
    sums = objective.loss(params, reference, batch, None)
    assert float(sums["loss"][0]) == pytest.approx(each[:3].sum(), rel=1e-5)
    assert float(sums["loss"][1]) == 3
    assert float(sums["reward_margin"][0]) == pytest.approx(margin[:3].sum(), rel=1e-4)
    assert float(sums["reward_accuracy"][0]) == (margin[:3] > 0).sum()


def test_ipo_and_chunks_and_sft_term(model, batch):
    made, params, reference = model
    pc, pr, rc, rr = expected(made, params, reference, batch)
    delta = (pc - rc) - (pr - rr)
    each = (delta - 1 / (2 * 0.3)) ** 2 - 0.5 * pc / np.maximum(batch["chosen_weights"].sum(-1), 1)
    objective = preference.ipo(made, beta=0.3, average=False, sft_weight=0.5, chunk=4)
    sums = objective.loss(params, reference, batch, None)
    assert float(sums["loss"][0]) == pytest.approx(each[:3].sum(), rel=1e-5)


def test_dpo_starts_at_a_tie(model, batch):
    made, params, _ = model
    objective = preference.dpo(made)
    frozen = objective.init(params)
    sums = objective.loss(params, frozen, batch, None)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(np.log(2), rel=1e-5)


def documents(count=20):
    return [
        {
            "id": str(i),
            "text": "…",
            "meta": {
                "kind": "docstring",
                "module": "m",
                "qualname": f"f{i}",
                "signature": f"def f{i}(x)",
                "summary": f"Return the number {i} times x.",
            },
        }
        for i in range(count)
    ]


def test_questions_match_their_functions():
    made = list(questions.chats(documents(), seed=3))
    assert len(made) == 20
    for chat in made:
        question, answer = (m["content"] for m in chat["messages"])
        number = answer.split()[3]
        assert f"m.f{number}(x)" in question
    assert made == list(questions.chats(documents(), seed=3))
    assert made != list(questions.chats(documents(), seed=4))
    assert len(list(questions.chats(documents(), limit=5))) == 5


def test_every_summary_is_chosen_once_and_rejected_once():
    pairs = list(questions.preferences(documents()))
    assert sorted(p["chosen"] for p in pairs) == sorted(p["rejected"] for p in pairs)
    for pair in pairs:
        assert pair["chosen"] != pair["rejected"]
        assert f"m.f{pair['chosen'].split()[3]}(x)" in pair["prompt"]


def test_documents_without_functions_are_refused():
    with pytest.raises(DataError, match="No document describes a function"):
        list(questions.chats([{"id": "1", "text": "x", "meta": {"kind": "licence"}}]))

# SPDX-License-Identifier: Apache-2.0
"""Held-out loss: every row once, whatever the batch; bits per byte of what is learned."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from llm.train import evaluate
from llm.train.objective import Objective, nothing


class Rows:
    """Seven rows whose nll is the row's number."""

    def __init__(self):
        self.manifest = {"weight": 21, "tokens": 100, "bytes_of_text": 42}

    def __len__(self):
        return 7

    def take(self, indices):
        found = np.asarray(indices, np.float32)
        return {"value": found, "weight": np.ones_like(found)}


def loss(params, frozen, batch, keys):
    assert keys is None  # nothing is drawn: dropout and noise are for training
    weight = batch["weight"].sum()
    return {"loss": ((batch["value"] * batch["weight"]).sum(), weight)} | {
        "nll": ((batch["value"] * batch["weight"]).sum(), weight)
    }


def place(batch):
    return {k: jnp.asarray(v) for k, v in batch.items()}


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_every_row_counts_once(size):
    measure = evaluate.loss_evaluator(Objective(nothing, loss), Rows(), place, batch_size=size)
    found = measure({}, ())
    assert found["nll"] == pytest.approx(3.0)
    assert found["perplexity"] == pytest.approx(math.exp(3.0), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(3.0 * 21 / 42 / math.log(2), rel=1e-6)


def test_limited_batches():
    measure = evaluate.loss_evaluator(
        Objective(nothing, loss), Rows(), place, batch_size=2, batches=2
    )
    assert measure({}, ())["nll"] == pytest.approx(1.5)


def test_processes_share_the_rows():
    parts = [
        evaluate.loss_evaluator(
            Objective(nothing, loss), Rows(), place, batch_size=4, share=(i, 2)
        )({}, ())["nll"]
        for i in range(2)
    ]
    assert parts == pytest.approx([np.mean([0, 1, 4, 5]), np.mean([2, 3, 6])])

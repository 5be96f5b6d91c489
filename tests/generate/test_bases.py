# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that name a base: what they say is data, and may be wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import llm
from llm import files
from llm.core import checkpoint, trees
from llm.core.sharding import unbox
from llm.errors import DataError
from llm.generate import bases
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer

CONFIG = TransformerConfig(vocab_size=32, n_layers=1, d_model=16, n_heads=2, max_length=16)
FINE = {"source": "/nowhere", "relative": "", "step": None, "hash": ""}


def _save(place, record):
    """Write a run that leaves out all but its final norm."""
    params = unbox(Transformer(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    kept, _ = trees.split(params["params"], "final_norm")
    with checkpoint.Checkpointer(place / "checkpoints", asynchronous=False) as writer:
        writer.save(1, {"params": kept}, {bases.RECORD: record})
    files.write_json(place / "config.json", {"model": dataclasses.asdict(CONFIG)})


@pytest.mark.parametrize(
    "record",
    ["x", [1], {"source": "/nowhere"}, {**FINE, "source": 3}, {**FINE, "step": "2"}, {"hash": 1}],
)
def test_records_that_name_no_base(record, tmp_path):
    _save(tmp_path, record)
    with pytest.raises(DataError, match="names no base"):
        llm.load(tmp_path)


def test_runs_that_name_each_other(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        _save(tmp_path / one, {**FINE, "source": str(tmp_path / other)})
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        llm.load(tmp_path / "a")
    assert "names itself as its base" in str(caught.value)


def test_a_base_that_is_no_model(tmp_path):
    (tmp_path / "base").mkdir()
    _save(tmp_path / "run", {**FINE, "relative": "../base"})
    with pytest.raises(DataError, match=r"base of .*run cannot be loaded: .*no config.json"):
        llm.load(tmp_path / "run")

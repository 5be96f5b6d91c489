# SPDX-License-Identifier: Apache-2.0
"""Whole runs with adapters: what is trained, what stays, what is saved, and starting from one."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import llm
from llm import main, tokenizers
from llm.core import checkpoint, trees
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.core.sharding import make_mesh, unbox
from llm.errors import ConfigError, DataError
from llm.generate import loading
from llm.models.adapters import ADDED
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2]
TOKENS = np.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documented functions: a corpus of two files."""
    place = tmp_path_factory.mktemp("data")
    records = [
        {
            "id": str(i),
            "text": f"Return the number {i} times x.",
            "meta": {
                "kind": "docstring",
                "module": "m",
                "qualname": f"f{i}",
                "signature": f"def f{i}(x)",
                "summary": f"Return the number {i} times x.",
            },
        }
        for i in range(60)
    ]
    lines = [json.dumps(record) for record in records]
    (place / "train-0.jsonl").write_text("\n".join(lines[:50]))
    (place / "validation-0.jsonl").write_text("\n".join(lines[50:]))
    return place


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama with a byte tokenizer, saved as a model of ours."""
    tokenizer = tokenizers.load("byte")
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size,
        n_layers=2,
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        d_ff=64,
        max_length=128,
    )
    params = unbox(Transformer(config).init(jax.random.key(0), TOKENS)["params"])
    place = tmp_path_factory.mktemp("base") / "base"
    loading.assemble(config, params, tokenizer, starts_texts=True).save(place)
    return place


def _run(name, workdir, start, data, **changes):
    config = configs.load_file(str(ROOT / "configs" / "posttrain" / f"{name}.py"))
    config.init["from"] = str(start)
    config.data.path = str(data)
    config.data.length = 96
    config.evals = {}
    config.sampling.every = 0
    config.train.update(steps=6, batch_size=8, log_every=1, eval_every=0, eval_first=False)
    config.checkpoint.every = 3
    for key, value in changes.items():
        section, field = key.split("__", 1)
        node = config[section]
        for part in field.split("__")[:-1]:
            node = node[part]
        node[field.split("__")[-1]] = value
    state = main.train(config, str(workdir))
    return state, llm.load(str(workdir)).params


def _stored(workdir):
    """Return the parameters that a run's newest checkpoint holds, by name."""
    return trees.flatten(checkpoint.restore(workdir, entries=("params",)).tree["params"])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, base, data):
    workdir = tmp_path_factory.mktemp("runs") / "sft"
    state, params = _run("sft_lora", workdir, base, data, model__adapter__dropout=0.1)
    return workdir, state, params


def _losses(workdir):
    return [
        row["train/loss"] for row in read_lines(workdir / "metrics.jsonl") if "train/loss" in row
    ]


def test_the_base_stays_bit_by_bit(tuned, base):
    _, state, params = tuned
    start = trees.flatten(llm.load(str(base)).params)
    end = trees.flatten(params)
    for name, leaf in start.items():
        np.testing.assert_array_equal(end[name], leaf, err_msg=name)
    added = {name for name in end if name not in start}
    assert added == set(trees.flatten(state.params)) and all(re.search(ADDED, n) for n in added)
    assert all(np.abs(np.asarray(end[name])).max() > 0 for name in added)
    moments = {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert moments == {end[name].shape for name in added}


def test_checkpoints_hold_the_adapter_alone(tuned, base):
    workdir, state, params = tuned
    stored = _stored(workdir)
    assert set(stored) == set(trees.flatten(state.params))
    for name, leaf in stored.items():
        np.testing.assert_array_equal(trees.flatten(params)[name], leaf, err_msg=name)
    record = checkpoint.restore(workdir, entries=()).extra["base"]
    assert record["source"] == str(base) and record["step"] == 0


def test_a_run_opens_on_any_mesh_and_where_it_was_moved_to(tuned, base, tmp_path):
    """Runs that are moved together still find each other; the fingerprint is the mesh's too."""
    expected = llm.load(str(tuned[0])).logits(TOKENS)
    shutil.copytree(base, tmp_path / base.parent.name / "base")
    moved = tmp_path / tuned[0].parent.name / "sft"
    shutil.copytree(tuned[0], moved)
    base.rename(base.with_name("away"))
    try:
        mesh = make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
        for lm in (llm.load(str(moved)), llm.load(str(moved), mesh=mesh)):
            np.testing.assert_allclose(lm.logits(TOKENS), expected, atol=1e-5)
    finally:
        base.with_name("away").rename(base)


def test_a_base_that_is_gone_or_changed_is_refused(tuned, base, data, tmp_path):
    run, start = tmp_path / "a" / "b" / "run", tmp_path / "base"
    shutil.copytree(base, start)
    _run("sft_lora", run, start, data, train__stop_after=3)
    before = _stored(run)
    start.rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"base of .*run is gone.*does not exist"):
        llm.load(run)
    with pytest.raises(ConfigError, match="base does not exist"):
        _run("sft_lora", run, start, data)
    other = llm.load(base)
    other = dataclasses.replace(other, params=jax.tree.map(lambda x: x * 1.0001, other.params))
    other.save(start)
    with pytest.raises(DataError, match="base, has other weights"):
        llm.load(run)
    with pytest.raises(DataError, match="base, has other weights"):
        _run("sft_lora", run, start, data)
    shutil.rmtree(start)
    (tmp_path / "away").rename(start)
    with checkpoint.Checkpointer(start / "checkpoints", asynchronous=False) as writer:
        writer.save(7, {"params": other.params})  # its own training went on: the old step counts
    np.testing.assert_array_equal(
        trees.flatten(llm.load(run).params)["decoder/layers/mlp/up/kernel"],
        trees.flatten(llm.load(base).params)["decoder/layers/mlp/up/kernel"],
    )
    state, _ = _run("sft_lora", run, start, data)
    assert int(state.step) == 6 and set(_stored(run)) == set(before)


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh(tuned, base, data, tmp_path):
    more = {"model__adapter__dropout": 0.1}
    _run("sft_lora", tmp_path / "run", base, data, train__stop_after=3, **more)
    _, params = _run("sft_lora", tmp_path / "run", base, data, mesh__fsdp=4, mesh__data=2, **more)
    for name, leaf in trees.flatten(tuned[2]).items():
        atol = 1e-5 if re.search(ADDED, name) else 0
        np.testing.assert_allclose(trees.flatten(params)[name], leaf, atol=atol, err_msg=name)


def test_a_run_with_an_adapter_loads_merges_and_saves(tuned, base, tmp_path):
    lm = llm.load(str(tuned[0]))
    logits = lm.logits(TOKENS)
    assert np.abs(logits - llm.load(str(base)).logits(TOKENS)).max() > 1e-3
    assert lm.generate(["f("], max_tokens=3)
    np.testing.assert_allclose(lm.merge().logits(TOKENS), logits, atol=1e-4)
    for form in ("adapter", "peft"):
        lm.save(tmp_path / form, format=form)
        size = sum(p.stat().st_size for p in (tmp_path / form).iterdir())
        assert size < trees.size_bytes(lm.params)
        again = llm.load(str(base), adapter=tmp_path / form)
        np.testing.assert_allclose(again.logits(TOKENS), logits, atol=1e-6)
    lm.save(tmp_path / "hf", format="hf")
    np.testing.assert_allclose(llm.load(tmp_path / "hf").logits(TOKENS), logits, atol=1e-4)
    with pytest.raises(ConfigError, match="already has an adapter"):
        llm.load(str(tuned[0]), adapter=tmp_path / "peft")


def test_a_stopped_run_goes_on_as_if_it_had_not(tuned, base, data, tmp_path):
    more = {"model__adapter__dropout": 0.1}
    _run("sft_lora", tmp_path / "run", base, data, train__stop_after=3, **more)
    _, params = _run("sft_lora", tmp_path / "run", base, data, **more)
    for name, leaf in trees.flatten(tuned[2]).items():
        np.testing.assert_array_equal(trees.flatten(params)[name], leaf, err_msg=name)


def test_dpo_begins_at_a_tie_on_the_merged_model(tuned, data, tmp_path):
    _, params = _run("dpo_lora", tmp_path / "dpo", tuned[0], data)
    merged = trees.flatten(llm.load(str(tuned[0])).merge().params)
    for name, leaf in merged.items():
        np.testing.assert_array_equal(trees.flatten(params)[name], leaf, err_msg=name)
    kept = {name for name in _stored(tmp_path / "dpo") if not re.search(ADDED, name)}
    assert kept == {name for name in merged if re.search("(attention|mlp)/.*kernel$", name)}
    losses = _losses(tmp_path / "dpo")
    assert losses[0] == pytest.approx(np.log(2), abs=1e-5) and losses[-1] != losses[0]


@pytest.mark.slow
def test_dpo_goes_on_with_old_adapters(tuned, data, tmp_path):
    changes = {"model__adapter__name": "inherit", "objective__reference": "start"}
    _, params = _run("dpo_lora", tmp_path / "dpo", tuned[0], data, **changes)
    then, now = trees.flatten(tuned[2]), trees.flatten(params)
    for name in then:
        assert np.array_equal(then[name], now[name]) != bool(re.search(ADDED, name)), name
    assert _losses(tmp_path / "dpo")[0] == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.slow
def test_a_base_in_four_bits(base, data, tmp_path):
    changes = {"model__adapter__base": "int4", "model__adapter__block": 8}
    state, _ = _run("sft_lora", tmp_path / "q", base, data, **changes)
    named = _stored(tmp_path / "q")
    assert named["decoder/layers/mlp/up/kernel/q4"].dtype == np.uint8
    assert not any("q4" in name for name in trees.flatten(state.params))
    lm = llm.load(str(tmp_path / "q"))
    assert lm.config.adapter.base == "full" and np.isfinite(lm.logits(TOKENS)).all()
    with pytest.raises(ConfigError, match="holds integers"):
        _run("sft_lora", tmp_path / "w", base, data, train__trainable="kernel", **changes)

# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import llm
from llm.compress import measure, quantize, stage
from llm.core.config import load_file
from llm.core.trees import count, size_bytes
from llm.errors import ConfigError
from llm.generate.stored import keep_integers
from llm.models import quant

CONFIGS = Path(__file__).parents[2] / "configs" / "compress"
TEXTS = [f"def function_{i}(argument):\n    return argument * {i}" for i in range(12)]
TOKENS = np.arange(256).reshape(8, 32) % 200  # the shape that the stage itself compiles


@pytest.fixture(scope="module")
def compressed(lm, tmp_path_factory):
    """Run the stage of the shipped config on a model and texts on disk."""
    root = tmp_path_factory.mktemp("compress")
    lm.save(root / "model")
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (root / "validation.jsonl").write_text("\n".join(lines))
    config = load_file(str(CONFIGS / "tiny.py"))
    config.model = str(root / "model")
    config.measure.update(documents=str(root / "validation.jsonl"), split="", length=32)
    config.variants.int4.group = 16
    found = stage.run(config, str(root / "out"))
    return config, root / "out", {entry["task"]: entry["metrics"] for entry in found}


def test_the_table_is_what_it_says(compressed, lm):
    _, _, found = compressed
    assert list(found) == ["bfloat16", "float32", "int4", "int8"]
    bits = -sum(lm.loglikelihood_rolling(TEXTS)) / math.log(2)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found["float32"]["bits_per_byte"]["value"] == pytest.approx(bits / n_bytes, rel=1e-5)
    assert found["float32"]["top1_agreement"]["value"] == 1.0
    assert found["float32"]["kl_bits_per_token"]["value"] == pytest.approx(0, abs=1e-6)
    for name in ("int8", "int4", "bfloat16"):
        change = found[name]["bits_per_byte_change"]["value"]
        assert found[name]["bits_per_byte"]["value"] - bits / n_bytes == pytest.approx(
            change, abs=1e-6
        )
    assert abs(found["int8"]["bits_per_byte_change"]["value"]) < 0.01
    assert found["int8"]["top1_agreement"]["value"] > 0.95
    order = [found[name]["kl_bits_per_token"]["value"] for name in ("float32", "int8", "int4")]
    assert order == sorted(order)
    held = {name: metrics["bytes_in_memory"]["value"] for name, metrics in found.items()}
    assert held["float32"] == size_bytes(lm.params) == 2 * held["bfloat16"]
    assert held["float32"] / held["int8"] > 3
    disk = {name: metrics["bytes_on_disk"]["value"] for name, metrics in found.items()}
    # How the storage groups small writes depends on timing: some 30 kB more or less at this size.
    assert all(disk[name] < disk["float32"] for name in ("int4", "int8", "bfloat16"))


def test_round_trip_through_load(compressed, lm, axes):
    _, out, _ = compressed
    loaded = llm.load(str(out))
    expected = quant.dequantize(quantize.quantize(lm.params, axes))
    for name in ("decoder", "embed", "lm_head"):
        mine, theirs = loaded.params[name], expected[name]
        assert size_bytes(mine) == size_bytes(theirs)
    logits = dataclasses.replace(lm, params=expected).logits(TOKENS)
    np.testing.assert_allclose(loaded.logits(TOKENS), logits, atol=1e-5)
    assert loaded.tokenizer.hash == lm.tokenizer.hash
    assert loaded.step == 7 and loaded.starts_texts
    settings = json.loads((out / "config.json").read_text())
    assert settings["quantization"]["method"] == "int8"


def test_integers_can_be_kept(compressed, lm, axes):
    config, out, found = compressed
    loaded = llm.load(str(out))
    kept = keep_integers(loaded, str(out))
    assert size_bytes(kept.params) == found["int8"]["bytes_in_memory"]["value"]
    np.testing.assert_allclose(kept.logits(TOKENS), loaded.logits(TOKENS), atol=1e-5)
    with pytest.raises(ConfigError, match="not quantised"):
        keep_integers(lm, config.model)


def test_disk_bytes_are_those_of_the_kept_checkpoint(compressed):
    _, out, found = compressed
    real = sum(f.stat().st_size for f in (out / "checkpoints").rglob("*") if f.is_file())
    assert found["int8"]["bytes_on_disk"]["value"] == real


def test_a_second_run_does_nothing(compressed):
    config, out, found = compressed
    before = {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}
    again = stage.run(config, str(out))
    assert {entry["task"]: entry["metrics"] for entry in again} == found
    assert before == {f: f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["headline"]["value"] > 3


def test_agreement_of_different_models_by_hand(lm, axes):
    other = measure.runnable(
        lm,
        quant.dequantize(quantize.quantize(lm.params, axes, "int4")),
        lm.config,
    )
    same, diverged = measure.agreement(lm, other, TEXTS[:3], length=32)
    hits, kl = [], []
    for text in TEXTS[:3]:
        ids = lm.encode_prompt(text)[:32]
        tokens = np.zeros((8, 32), np.int32)
        tokens[5, : len(ids)] = ids
        p, q = (np.asarray(m.logits(tokens), np.float64)[5, : len(ids)] for m in (lm, other))
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
        hits.append(p.argmax(-1) == q.argmax(-1))
        kl.append((np.exp(p) * (p - q)).sum(-1) / math.log(2))
    assert same.value == pytest.approx(np.mean(hits))
    assert diverged.value == pytest.approx(np.mean(kl), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": "int3"}, "Did you mean"),
        ({"variants": {"int8": {"method": "int9"}}}, "Did you mean"),
        ({"variants": {"int8": {"method": "int8", "groups": 4}}}, "Did you mean 'group'"),
        ({"measure": {"documents": "x", "lenght": 3}}, "Did you mean 'length'"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(change, message, tmp_path):
    config = ConfigDict(
        {
            "model": "nowhere",
            "variants": {"int8": {"method": "int8"}},
            "keep": "int8",
            "measure": {"documents": "x"},
            **change,
        }
    )
    with pytest.raises(ConfigError, match=message):
        stage.run(config, str(tmp_path))


def test_a_pruned_model_is_kept_and_opened(lm, tmp_path):
    """Every variant of the shipped config, and the smaller shape in the kept model's config."""
    lm.save(tmp_path / "model")
    for name, some in (("validation", TEXTS[:6]), ("train", TEXTS[6:])):
        lines = [json.dumps({"text": text}) for text in some]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    config = load_file(str(CONFIGS / "prune.py"))
    config.model = str(tmp_path / "model")
    config.measure.update(documents=str(tmp_path / "validation.jsonl"), split="", length=32)
    config.calibration.update(documents=str(tmp_path / "train.jsonl"), split="", length=32)
    config.variants.hidden.d_ff, config.variants.layers.layers = 48, 1
    found = {e["task"]: e["metrics"] for e in stage.run(config, str(tmp_path / "out"))}
    zeros = {name: metrics["zeros"]["value"] for name, metrics in found.items()}
    assert zeros["float32"] == zeros["hidden"] == zeros["layers"] == 0
    matrices = sum(leaf.size for leaf in jax.tree.leaves(lm.params["decoder"]["layers"]))
    for name in ("magnitude", "wanda", "wanda_2_4"):
        assert zeros[name] == pytest.approx(0.5 * matrices / count(lm.params), rel=0.02)
    assert found["hidden"]["bytes_in_memory"]["value"] < size_bytes(lm.params)
    loaded = llm.load(str(tmp_path / "out"))
    assert loaded.config.d_ff == 48 and config.keep == "hidden"
    assert loaded.logits(TOKENS).shape == (8, 32, lm.config.vocab_size)


def test_gptq_is_kept_as_integers(lm, tmp_path):
    lm.save(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    config = load_file(str(CONFIGS / "gptq.py"))
    config.model = str(tmp_path / "model")
    config.variants.gptq.group = config.variants.int4.group = 8
    for section in (config.measure, config.calibration):
        section.update(documents=str(tmp_path / "texts.jsonl"), split="", length=32)
    found = {e["task"]: e["metrics"] for e in stage.run(config, str(tmp_path / "out"))}
    kept = keep_integers(llm.load(str(tmp_path / "out")), str(tmp_path / "out"))
    assert size_bytes(kept.params) == found["gptq"]["bytes_in_memory"]["value"]
    assert found["gptq"]["bytes_in_memory"]["value"] == found["int4"]["bytes_in_memory"]["value"]


def test_calibration_is_asked_for_before_anything_runs(tmp_path):
    config = load_file(str(CONFIGS / "prune.py"))
    del config.calibration
    with pytest.raises(ConfigError, match=r"config.calibration.documents is missing"):
        stage.run(config, str(tmp_path))

# SPDX-License-Identifier: Apache-2.0
"""Import and export against Hugging Face on the same weights: values, gradients, refusals."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm.core import trees
from llm.errors import ConfigError, DataError
from llm.models import convert, hf_config
from llm.models.families import ROWS
from llm.models.presets import PRESETS, config

GOLDENS = Path(__file__).parent.parent / "goldens"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, GOLDENS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = _load("parity")
hf_cases = parity.hf_cases
FIGURES = json.loads(parity.FIGURES.read_text())


def _folder(name, tmp_path):
    return parity.write_folder(name, tmp_path)


@pytest.mark.parametrize("name", hf_cases.CASES)
def test_family_agrees_with_hugging_face(name, tmp_path, jit):
    """Logits plain, padded, packed and decoded with a cache <= 2e-4; gradients <= 1e-3 relative.

    The exported files are, byte for byte, those that transformers opened for hf_parity.json.
    """
    folder = _folder(name, tmp_path / "original")
    figures = parity.measure(name, folder, jit)
    for kind in ("plain", "padded", "packed", "decode"):
        assert (figures[kind] or 0) <= 2e-4, kind
    assert (figures["decode"] is None) == (name in ("bert", "roberta", "distilbert"))
    assert figures["gradient"] <= 1e-3
    for key, got, want in figures["dots"]:  # every tensor's gradient, along one direction
        assert abs(got - want) <= 1e-3 * abs(want) + 1e-4, key
    assert len(figures["dots"]) >= len(parity.golden(name)[1]["shapes"]) - 1
    parity.export(folder, tmp_path / "export")
    saved = load_file(tmp_path / "export" / "model.safetensors")
    for key, array in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(saved[key], array, err_msg=key)
    assert parity.export_hash(tmp_path / "export") == FIGURES[name]["sha256"], (
        "The export changed: run tests/goldens/parity.py and make_hf.py --exports again."
    )
    assert FIGURES[name]["export"] <= 1e-6


def test_the_table_of_families_is_what_was_measured():
    """docs/models.md shows the figures of hf_parity.json, for every family that is read."""
    text = (GOLDENS.parents[1] / "docs" / "models.md").read_text()
    for name in hf_cases.CASES:
        assert parity.table_row(name, FIGURES[name]) in text
    tested = {case["model_type"] for case in hf_cases.CASES.values()}
    assert tested == set(hf_config.FAMILIES) == set(ROWS)


@pytest.mark.parametrize("name", ["llama_yarn", "gemma3", "qwen3_moe", "roberta", "t5_v1_1"])
def test_saved_folder_loads_as_the_same_model(name, tmp_path):
    c, params = convert.load_hf(_folder(name, tmp_path))
    convert.save_hf(c, params, tmp_path / "again")
    again, reread = convert.load_hf(tmp_path / "again")
    assert hf_config.computation(again) == hf_config.computation(c)
    for (key, got), want in zip(
        trees.flatten(reread).items(), trees.flatten(params).values(), strict=True
    ):
        np.testing.assert_array_equal(got, want, err_msg=key)


def test_sharded_export(tmp_path):
    """Several files and their index, as transformers opened them; read again, as bfloat16 too."""
    folder = _folder("llama", tmp_path / "original")
    parity.export(folder, tmp_path / "again", parity.SHARD)
    assert len(list((tmp_path / "again").glob("model-*-of-*.safetensors"))) > 2
    assert parity.export_hash(tmp_path / "again") == FIGURES["llama"]["sharded_sha256"]
    assert all(FIGURES[name]["sharded"] <= 1e-6 for name in hf_cases.CASES)
    _, reread = convert.load_hf(tmp_path / "again", dtype="bfloat16")
    kernel = trees.flatten(reread)["decoder/layers/mlp/up/kernel"]
    assert kernel.dtype == jnp.bfloat16
    original = trees.flatten(convert.load_hf(folder)[1])["decoder/layers/mlp/up/kernel"]
    np.testing.assert_array_equal(kernel, original.astype(jnp.bfloat16))


def test_bfloat16_files(tmp_path):
    c, params = convert.load_hf(_folder("llama", tmp_path), dtype="bfloat16")
    convert.save_hf(c, params, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
    _, reread = convert.load_hf(tmp_path / "again")
    got, want = trees.flatten(reread), trees.flatten(params)
    np.testing.assert_array_equal(got["embed/embedding"], want["embed/embedding"])


def test_leaves_are_placed_one_by_one(tmp_path):
    seen = {}

    def place(name, leaf):
        seen[name] = leaf.shape
        return leaf

    _, params = convert.load_hf(_folder("llama", tmp_path), place=place)
    assert seen["decoder/layers/mlp/up/kernel"] == (2, 32, 48)
    assert isinstance(trees.flatten(params)["embed/embedding"], np.ndarray)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_config_json(name):
    c = config(name)
    raw = hf_config.write(c)
    tensors = ([] if c.tied_embeddings else ["lm_head.weight"]) + ["x.pooler.dense.weight"]
    again = hf_config.read(raw, tensors if c.pooler else tensors[:-1])
    assert hf_config.computation(again) == hf_config.computation(c)


def _broken(tmp_path, **changes):
    folder = _folder("llama", tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "deepseek_v3"}, "deepseek_v3.*latent attention.*\n.*Supported: .*llama"),
        ({"model_type": "gpt_oss"}, "model_type='gpt_oss'.*MXFP4"),
        ({"model_type": "gemma3"}, "model_type='gemma3'.*more than text"),
        ({"model_type": "qwen2_5_vl"}, "model_type='qwen2_5_vl'.*more than text"),
        ({"model_type": "mamba2"}, "model_type='mamba2'.*no plain transformer"),
        ({"model_type": "novel"}, "model_type='novel', which is not supported.\n"),
        ({"model_type": None}, "model_type=None"),
        ({"kv_lora_rank": 8}, "kv_lora_rank=8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config.*\n.*unquantised"),
        ({"hidden_act": "xielu"}, "activation 'xielu'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"layer_types": ["linear_attention"] * 2}, "linear_attention"),
        ({"num_key_value_heads": 3}, "n_kv_heads=3"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_unsupported_config_is_named(changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        convert.load_hf(_broken(tmp_path, **changes))


def _rewrite(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("model.norm.weight"), "model.norm.weight is missing"),
        (lambda a: a.update({"model.extra": np.zeros(3)}), "model.extra has no place"),
        (
            lambda a: a.update({"model.norm.weight": np.zeros(3, np.float32)}),
            r"model.norm.weight has shape \(3,\), not \(32,\)",
        ),
    ],
)
def test_wrong_tensors_are_named(change, words, tmp_path):
    folder = _folder("llama", tmp_path)
    _rewrite(folder, change)
    with pytest.raises(DataError, match=words):
        convert.load_hf(folder)


def test_damaged_and_pickled_files_are_refused(tmp_path):
    folder = _folder("llama", tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        convert.load_hf(folder)
    path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="pickle"):
        convert.load_hf(folder)


def test_a_model_no_family_computes_says_so():
    with pytest.raises(ConfigError, match="No Hugging Face family computes this model"):
        hf_config.write(config("tiny", activation="relu2"))

# SPDX-License-Identifier: Apache-2.0
"""Import and export against Hugging Face on the same weights: values, gradients, refusals."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm.core import trees
from llm.errors import ConfigError, DataError
from llm.models import convert, hf_config
from llm.models.presets import PRESETS, config
from llm.models.transformer import Transformer

GOLDENS = Path(__file__).parent.parent / "goldens"


def _load_cases():
    spec = importlib.util.spec_from_file_location("hf_cases", GOLDENS / "hf_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hf_cases = _load_cases()
ROW = 24  # two documents fit one row


def _golden(name):
    with np.load(GOLDENS / "hf" / f"{name}.npz") as file:
        return file["logits"], json.loads(str(file["about"]))


def _folder(name, tmp_path):
    """Write the Hugging Face folder a golden stands for."""
    _, about = _golden(name)
    arrays = {key: hf_cases.seeded(key, tuple(shape)) for key, shape in about["shapes"].items()}
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(about["config"]))
    return tmp_path


def _rows(documents):
    """Lay documents out three ways: alone with padding (two rows), and packed in one row."""
    tokens = np.zeros((3, ROW), np.int32)
    segments, positions = np.zeros_like(tokens), np.tile(np.arange(ROW, dtype=np.int32), (3, 1))
    start = 0
    for row, document in enumerate(documents):
        size = len(document)
        tokens[row, :size], segments[row, :size] = document, 1
        packed = slice(start, start + size)
        tokens[2, packed], segments[2, packed] = document, row + 1
        positions[2, packed] = np.arange(size)
        start += size
    return {"tokens": tokens, "segments": segments, "positions": positions}


def _inputs(c):
    ids = hf_cases.tokens()
    documents = [ids[row, :length] for row, length in enumerate(hf_cases.LENGTHS)]
    inputs = _rows(documents)
    if c.architecture == "encoder_decoder":
        encoder = {f"encoder_{key}": value for key, value in inputs.items()}
        return {**_rows(list(hf_cases.decoder_tokens())), **encoder}
    return inputs


@pytest.mark.parametrize("name", hf_cases.CASES)
def test_family_agrees_with_hugging_face(name, tmp_path, jit):
    """Logits padded and packed <= 2e-4, every tensor's gradient <= 1e-3; export is lossless."""
    expected, about = _golden(name)
    c, params = convert.load_hf(_folder(name, tmp_path))
    model = Transformer(c)
    inputs = _inputs(c)
    weights = np.zeros((3, ROW, hf_cases.V), np.float32)
    weights[:2, : hf_cases.T] = hf_cases.loss_weights()

    def loss(params):
        logits = model.apply({"params": params}, **inputs)
        return jnp.sum(logits * weights), logits

    (_, logits), gradients = jit(jax.value_and_grad(loss, has_aux=True))(params)
    first, second = hf_cases.LENGTHS
    if c.architecture == "encoder_decoder":
        first = second = hf_cases.T
    for row, at, size in ((0, 0, first), (1, 0, second)):
        np.testing.assert_allclose(logits[row, :size], expected[row, :size], atol=2e-4)
        packed = logits[2, at + row * first : at + row * first + size]
        np.testing.assert_allclose(packed, expected[row, :size], atol=2e-4)
    _check_gradients(c, gradients, about)
    entries = convert.export_entries(c, params, about["config"]["model_type"])
    assert {key: list(entry.shape) for key, entry in entries.items()} == about["shapes"]
    for key, entry in entries.items():
        np.testing.assert_array_equal(entry.make(), hf_cases.seeded(key, entry.shape))


def _check_gradients(c, gradients, about):
    family = about["config"]["model_type"]
    entries = convert.export_entries(c, gradients, family)
    checked = 0
    for key, want in about["gradients"].items():
        if key not in entries:
            continue
        gradient = np.asarray(entries[key].make(), np.float64)
        direction = hf_cases.seeded("direction " + key, gradient.shape)
        got = np.vdot(gradient, direction)
        assert abs(got - want) <= 1e-3 * abs(want) + 1e-4, (key, got, want)
        checked += 1
    assert checked >= len(entries) - 1


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


def test_sharded_export(tmp_path, monkeypatch):
    c, params = convert.load_hf(_folder("llama", tmp_path))
    monkeypatch.setattr(convert, "SHARD_BYTES", 20_000)
    convert.save_hf(c, params, tmp_path / "again")
    assert len(list((tmp_path / "again").glob("model-*-of-*.safetensors"))) > 2
    _, reread = convert.load_hf(tmp_path / "again", dtype="bfloat16")
    kernel = trees.flatten(reread)["decoder/layers/mlp/up/kernel"]
    assert kernel.dtype == jnp.bfloat16
    original = trees.flatten(params)["decoder/layers/mlp/up/kernel"]
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
        ({"model_type": "deepseek_v3"}, "model_type='deepseek_v3'.*\n.*Supported: .*llama"),
        ({"kv_lora_rank": 8}, "kv_lora_rank=8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
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

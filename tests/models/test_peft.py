# SPDX-License-Identifier: Apache-2.0
"""Adapters against PEFT on the same weights: values, gradients, merging, files both ways."""

import dataclasses
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
from llm.models import config as configs
from llm.models import convert, peft, tuning
from llm.models.adapters import ADDED
from llm.models.transformer import Transformer

GOLDENS = Path(__file__).parent.parent / "goldens"


def _module(name):
    spec = importlib.util.spec_from_file_location(name, GOLDENS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hf_cases = _module("hf_cases")
CASES = _module("peft_cases").cases()
seed_name = _module("peft_cases").seed_name
TOKENS = hf_cases.tokens()


def _golden(name, logits="logits"):
    with np.load(GOLDENS / "peft" / f"{name}.npz") as file:
        return file[logits], file["merged"], json.loads(str(file["about"]))


def _base(about, folder):
    """Import the base that a golden was made with."""
    arrays = {key: hf_cases.seeded(key, tuple(shape)) for key, shape in about["shapes"].items()}
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(about["config"]))
    config, params = convert.load_hf(folder)
    return config, params, about["config"]["model_type"]


def _adapter(about, folder, make):
    """Write an adapter's folder with the arrays that make(name, shape) gives."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = about["adapter_shapes"]
    arrays = {key: make(key, tuple(shape)) for key, shape in shapes.items()}
    save_file(arrays, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(about["adapter"]))
    return folder


def _weights(name, shape):
    return hf_cases.seeded(seed_name(name), shape)


def _attached(about, tmp_path):
    config, params, family = _base(about, tmp_path / "base")
    adapter, added = peft.read(_adapter(about, tmp_path / "adapter", _weights), config, family)
    return (*peft.attach(config, params, adapter, added), family)


def _logits(jit, config, params):
    return jit(lambda p: Transformer(config).apply({"params": p}, TOKENS))(params)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_peft(jit, name, tmp_path):
    expected, merged, about = _golden(name)
    config, params, family = _attached(about, tmp_path)
    trained, frozen = trees.split(params, ADDED)
    direction = hf_cases.seeded("loss", expected.shape)

    def loss(trained):
        logits = Transformer(config).apply({"params": trees.merge(trained, frozen)}, TOKENS)
        return jnp.sum(logits * direction), logits

    (_, logits), grads = jit(jax.value_and_grad(loss, has_aux=True))(trained)
    assert np.abs(logits - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    _check_gradients(about, grads, dataclasses.replace(config), family, tmp_path)
    if merged.size:
        plain, whole = tuning.merge(config, params)
        np.testing.assert_allclose(_logits(jit, plain, whole), merged, atol=1e-4)


def _check_gradients(about, grads, config, family, tmp_path):
    """Compare the gradient's inner product with a seeded direction, tensor by tensor."""
    plain = tuning.without(config, {})[0]
    largest = max(abs(x) for x in about["gradients"].values())
    for tensor, want in about["gradients"].items():

        def only(key, shape, tensor=tensor):
            seeded = hf_cases.seeded("direction " + key, shape)
            return seeded if key == tensor else np.zeros(shape, np.float32)

        _, along = peft.read(_adapter(about, tmp_path / "direction", only), plain, family)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(along), strict=True)
        got = sum(np.vdot(np.asarray(g, np.float64), d) for g, d in pairs)
        assert abs(got - want) <= 1e-5 * largest, (tensor, got, want)


@pytest.mark.parametrize("name", CASES)
def test_without_rounding_logits_are_those_of_peft(jit, name, tmp_path, monkeypatch):
    """In 64 bits on both sides: what differs in float32 is the order of sums, nothing else."""
    truth, _, about = _golden(name, "truth")
    config, params, _ = _attached(about, tmp_path)
    for field in ("dtype", "param_dtype"):
        monkeypatch.setitem(configs._CHOICES, field, ("float64",))
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        wide = dataclasses.replace(config, dtype="float64", param_dtype="float64")
        logits = np.asarray(_logits(jit, wide, params))
    assert logits.dtype == truth.dtype == np.float64
    assert np.abs(logits - truth).max() <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_files_are_written_as_they_were_read(name, tmp_path):
    _, _, about = _golden(name)
    config, params, family = _attached(about, tmp_path)
    peft.write(config, params, tmp_path / "again")
    written = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert {key: list(array.shape) for key, array in written.items()} == about["adapter_shapes"]
    for key, array in written.items():
        np.testing.assert_allclose(array, _weights(key, array.shape), rtol=1e-6)
    settings = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    for key in ("peft_type", "num_virtual_tokens", "token_dim", "num_layers", "r", "lora_alpha"):
        if key in about["adapter"]:
            assert settings.get(key) == about["adapter"][key], key
    plain = tuning.without(config, {})[0]
    adapter, _ = peft.read(tmp_path / "again", plain, family)
    assert adapter == config.adapter


def test_parts_of_a_fused_map_that_were_trained_apart(jit, tmp_path):
    """GPT-2's query, key and value with three A: written as one update of the summed rank."""
    _, _, about = _golden("gpt2_lora")
    config, params, family = _attached(about, tmp_path)
    name = "decoder/layers/attention/key/lora_a"
    named = trees.flatten(params)
    params = trees.unflatten(named | {name: named[name] * 0.5 + 0.1})
    peft.write(config, params, tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == {"attn.c_attn": 9}
    base, plain, _ = _base(about, tmp_path / "twin")
    again = peft.attach(base, plain, *peft.read(tmp_path / "again", base, family))
    np.testing.assert_allclose(
        _logits(jit, *again), _logits(jit, config, params), atol=1e-5, rtol=1e-5
    )


def _broken(tmp_path, settings, change):
    _, _, about = _golden("llama_lora")
    folder = _adapter(about, tmp_path / "adapter", _weights)
    (folder / "adapter_config.json").write_text(json.dumps({**about["adapter"], **settings}))
    arrays = load_file(folder / "adapter_model.safetensors")
    change(arrays)
    save_file(arrays, folder / "adapter_model.safetensors")
    config, _, family = _base(about, tmp_path / "base")
    return folder, config, family


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("settings", "change", "kind", "words"),
    [
        ({"peft_type": "IA3"}, len, ConfigError, "IA3"),
        ({"modules_to_save": ["lm_head"]}, len, ConfigError, "modules_to_save"),
        ({"bias": "all"}, len, ConfigError, "biases"),
        ({}, lambda a: a.pop(FIRST), DataError, "lacks the tensor .*q_proj.lora_B"),
        ({}, lambda a: a.update({FIRST: np.zeros((3, 3))}), DataError, r"is \(3, 3\), not"),
        ({}, lambda a: a.update(x=np.zeros(3)), DataError, "x has no place"),
    ],
)
def test_what_cannot_be_read_is_named(settings, change, kind, words, tmp_path):
    folder, config, family = _broken(tmp_path, settings, change)
    with pytest.raises(kind, match=words):
        peft.read(folder, config, family)


def test_ranks_and_scales_by_pattern(tmp_path):
    """A module of its own rank and alpha computes what it did: B is rescaled, A padded."""
    settings = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}}

    def shrink(arrays):
        for key in [key for key in arrays if "q_proj" in key]:
            a = "lora_A" in key
            arrays[key] = np.ascontiguousarray(arrays[key][:2] if a else arrays[key][:, :2])

    folder, config, family = _broken(tmp_path, settings, shrink)
    adapter, added = peft.read(folder, config, family)
    named = trees.flatten(added)
    at = "decoder/layers/attention/query/lora_"
    got = np.einsum("LDr,LrNH->LDNH", named[f"{at}a"], named[f"{at}b"])[0] * adapter.scale
    arrays = load_file(folder / "adapter_model.safetensors")
    b, a = arrays[FIRST], arrays[FIRST.replace("lora_B", "lora_A")]
    np.testing.assert_allclose(got.reshape(32, -1).T, b @ a * 7 / 2, rtol=1e-5, atol=1e-6)

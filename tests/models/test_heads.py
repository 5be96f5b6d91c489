# SPDX-License-Identifier: Apache-2.0
"""Classification heads against Hugging Face on the same weights, and back to its files."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm.errors import ConfigError
from llm.models import convert, hf_config
from llm.models.presets import config as preset
from llm.models.transformer import Transformer

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = ("llama_sequence", "gpt2_sequence", "bert_sequence", "bert_token", "llama_token")


def _cases():
    spec = importlib.util.spec_from_file_location("hf_cases", GOLDENS / "hf_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hf_cases = _cases()


def _load(name, folder):
    """Return a golden's logits, and the model read from the folder that it stands for."""
    with np.load(GOLDENS / "heads" / f"{name}.npz") as file:
        logits, about = file["logits"], json.loads(str(file["about"]))
    arrays = {key: hf_cases.seeded(key, tuple(shape)) for key, shape in about["shapes"].items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(about["config"]))
    return logits, about, *convert.load_hf(folder)


@pytest.mark.parametrize("name", CASES)
def test_class_logits_are_those_of_hugging_face(jit, name, tmp_path):
    expected, about, config, params = _load(name, tmp_path)
    assert config.labels == ("no", "yes", "unsure") and config.n_classes == 3
    run = jit(
        lambda p: Transformer(config).apply(
            {"params": p}, hf_cases.tokens(), segments=hf_cases.mask()
        )
    )
    got = np.asarray(run(params))
    if config.head == "sequence":
        last = np.array(hf_cases.LENGTHS) - 1 if config.causal else np.zeros(2, int)
        np.testing.assert_allclose(got[np.arange(2), last], expected, atol=1e-5)
    else:
        for row, length in enumerate(hf_cases.LENGTHS):
            np.testing.assert_allclose(got[row, :length], expected[row, :length], atol=1e-5)
    convert.save_hf(config, params, tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "config.json").read_text())
    assert settings["architectures"] == about["config"]["architectures"]
    assert settings["id2label"] == about["config"]["id2label"]
    again, reread = convert.load_hf(tmp_path / "again")
    assert hf_config.computation(again) == hf_config.computation(config)
    assert again.labels == config.labels
    entries = convert.export_entries(again, reread, settings["model_type"])
    assert {key: list(entry.shape) for key, entry in entries.items()} == about["shapes"]
    for key, entry in entries.items():
        np.testing.assert_array_equal(entry.make(), hf_cases.seeded(key, entry.shape))


def test_heads_that_are_not_known_are_named(tmp_path):
    _, about, _, _ = _load("bert_sequence", tmp_path)
    raw = {**about["config"], "model_type": "roberta"}
    raw["architectures"] = ["RobertaForSequenceClassification"]
    with pytest.raises(ConfigError, match="sequence classification head of roberta"):
        hf_config.read(raw, about["shapes"])
    t5 = dataclasses.replace(preset("t5_small"), head="sequence", n_classes=2)
    with pytest.raises(ConfigError, match="No Hugging Face family"):
        hf_config.write(t5)

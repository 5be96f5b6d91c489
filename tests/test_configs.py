# SPDX-License-Identifier: Apache-2.0
"""Every shipped config binds to its builders and describes a model that can be built."""

from pathlib import Path

import jax
import numpy as np
import pytest

from llm import main
from llm.core import config as configs
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").glob("*/*.py"))
TRAINING = [p for p in SHIPPED if p.split("/")[1] in ("pretrain", "posttrain")]
PRETRAIN = [p for p in TRAINING if p.split("/")[1] == "pretrain"]
NAMED = "tiny shakespeare_char smollm2_135m gpt2_124m llama2_7b llama31_8b llama2_70b"
PARAMETERS = {  # published
    "smollm2_135m": 134_515_008,
    "gpt2_124m": 124_439_808,
    "llama2_7b": 6_738_415_616,
    "llama31_8b": 8_030_261_248,
    "llama2_70b": 68_976_648_192,
    "mixtral_8x7b": 46_702_792_704,
}


def load(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return configs.load_file(path)


def test_all_stages_have_a_tiny_config():
    stages = (
        "corpus",
        "tokenizer",
        "pretrain",
        "posttrain",
        "eval",
        "compress",
        "serve",
        "feedback",
        "rounds",
        "label",
    )
    for stage in stages:
        assert f"configs/{stage}/tiny.py" in SHIPPED
        assert (ROOT / "scripts" / f"{stage}.py").exists() and hasattr(main, stage)
    for name in [*NAMED.split(), "mixtral_8x7b", "bert_base", "t5_base"]:
        assert f"configs/pretrain/{name}.py" in SHIPPED


@pytest.mark.parametrize("path", SHIPPED)
def test_header_gives_the_command(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    stage = path.split("/")[1]
    assert f"scripts/{stage}.py" in text and f"--config={path}" in text and "Hardware" in text


@pytest.mark.parametrize("path", TRAINING)
def test_training_configs_bind(path, monkeypatch):
    main.check_training(load(path, monkeypatch))


@pytest.mark.parametrize("path", PRETRAIN)
def test_models_build(path, monkeypatch):
    config = load(path, monkeypatch)
    fields = configs.bind(TransformerConfig, config.model, "model")
    fields["vocab_size"] = fields["vocab_size"] or 30_528
    shape = TransformerConfig(**fields).validate()
    assert config.data.length <= shape.max_length
    tokens = jax.ShapeDtypeStruct((1, 8), np.int32)
    shapes = jax.eval_shape(Transformer(shape).init, jax.random.key(0), tokens)
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    published = PARAMETERS.get(Path(path).stem)
    assert published in (None, count)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("objective", "labelsmoothing"),
        ("optimizer", "b3"),
        ("schedule", "warmup"),
        ("train", "step"),
        ("data", "lenght"),
        ("sampling", "promts"),
        ("checkpoint", "evry"),
        ("model", "layers"),
    ],
)
def test_a_wrong_key_in_a_file_is_named(section, key, monkeypatch):
    config = load("configs/pretrain/tiny.py", monkeypatch)
    config[section][key] = 1
    with pytest.raises(main.ConfigError, match=key):
        main.check_training(config)

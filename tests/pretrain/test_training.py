# SPDX-License-Identifier: Apache-2.0
"""The objectives train through the real entry point and learn more than letter frequencies."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import llm
from llm import main, tokenizers
from llm.core import config as configs
from llm.core.metrics import read_lines
from llm.data import examples, packing
from llm.data.rows import open_rows
from llm.errors import ConfigError
from llm.models.config import TransformerConfig
from llm.models.presets import config
from llm.models.transformer import Transformer
from llm.pretrain import denoise
from llm.train.objective import check_rows, cross_entropy

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("the", "of", "and", "returns", "list", "value", "object", "string", "when", "is", "given")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documents of few words: a hidden letter follows from its word."""
    rng = np.random.default_rng(0)
    odds = 1 / np.arange(1, len(WORDS) + 1)
    texts = [" ".join(rng.choice(WORDS, 60, p=odds / odds.sum())) for _ in range(300)]
    target = tmp_path_factory.mktemp("data") / "docs.jsonl"
    target.write_text("\n".join(json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts)))
    return target


def run(name, data, workdir, steps, *more):
    """Run the entry point in a process of its own, which has one device."""
    command = [
        *(sys.executable, "scripts/pretrain.py", f"--config=configs/pretrain/{name}.py"),
        f"--workdir={workdir}",
        f"--config.data.path={data}",
        "--config.data.length=64",
        "--config.model.d_model=64",
        "--config.model.d_ff=128",
        f"--config.train.steps={steps}",
        f"--config.train.eval_every={steps}",
        f"--config.checkpoint.every={steps}",
        "--config.schedule.peak=3e-3",
        "--config.schedule.warmup_steps=20",
        *more,
    ]
    # One device, and code that is compiled well: hundreds of steps run it.
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def entropy_of_targets(folder):
    """Return what the best guess that ignores the input would score, in nats, by NumPy."""
    settings = json.loads((folder / "config.json").read_text())
    section = settings["data"]["corruption"]
    builder = configs.resolve_builder(main.CORRUPTIONS[section.pop("name")])
    transform = builder(tokenizers.load("byte"), length=64, seed=settings["seed"], **section)
    rows = denoise.CorruptedRows(open_rows(folder / "rows" / "data" / "validation"), transform)
    batch = rows.take(np.arange(min(len(rows), 64)))
    counts = np.bincount(batch["targets"][batch["weights"] > 0])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


# name -> steps, and the share of the entropy that the loss must fall below
RUNS = {
    "tiny_mlm": (200, 0.6),
    "tiny_t5": (150, 0.7),
    "tiny_prefix_lm": (150, 0.6),
    "tiny_ul2": (300, 0.7),
    "tiny_fim": (150, 0.6),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_training_beats_the_unigram_entropy(name, data, tmp_path):
    steps, share = RUNS[name]
    done = run(name, data, tmp_path, steps)
    assert done.returncode == 0, done.stderr
    lines = read_lines(tmp_path / "metrics.jsonl")
    found = [line["eval/validation/nll"] for line in lines if "eval/validation/nll" in line]
    entropy = entropy_of_targets(tmp_path)
    assert entropy > 2
    assert found[-1] < share * entropy, (found, entropy)
    lm = llm.load(tmp_path)
    assert lm.config.prefix_lm == (name == "tiny_prefix_lm")
    if lm.config.architecture != "encoder":
        assert len(lm.complete(["the value "], max_tokens=4)[0].tokens) == 4


# config -> what makes it small: one layer, which is enough to spell words
SMALL = {
    "tiny_mlm": {"n_layers": 1},
    "tiny_t5": {"n_layers": 1, "n_encoder_layers": 1},
}
WELL = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@pytest.mark.parametrize("name", SMALL)
def test_one_layer_beats_the_unigram_entropy(name, data, monkeypatch, jit):
    """BERT's and T5's objectives in 150 steps, against the entropy of what is to be predicted."""
    monkeypatch.chdir(ROOT)
    settings = configs.load_file(f"configs/pretrain/{name}.py")
    section, steps, length, size = dict(settings.data.corruption), 150, 64, 16
    tokenizer = tokenizers.load("byte")
    fields = {**settings.model, "vocab_size": 320, "d_ff": 128, **SMALL[name]}
    model = Transformer(TransformerConfig(**fields).validate())
    builder = configs.resolve_builder(main.CORRUPTIONS[section.pop("name")])
    transform = builder(tokenizer, length=length, vocab_size=320, **section)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    made = examples.document_examples(({"text": t} for t in texts), tokenizer, Counter())
    (rows,) = packing.pack_blocks(made, length)
    rng, batches = np.random.default_rng(0), []
    for step in range(steps):
        chosen = rng.integers(0, len(rows["tokens"]), size)
        numbers = step * size + np.arange(size)
        batches.append(transform({k: v[chosen] for k, v in rows.items()}, numbers))
    rate = optax.schedules.warmup_cosine_decay_schedule(0, 5e-3, 20, steps)
    optimizer = optax.adam(rate, b2=0.95)
    loss = cross_entropy(model).loss

    def update(params, state, batch):
        def mean(p):
            total, weight = loss(p, (), batch, None)["loss"]
            return total / weight

        value, gradient = jax.value_and_grad(mean)(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    params = nn.unbox(jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32)))["params"]
    state, found = optimizer.init(params), []
    update = jax.jit(update, compiler_options=WELL)  # many steps: compile well
    for batch in batches:
        params, state, value = update(params, state, batch)
        found.append(float(value))
    targets = np.concatenate([b["targets"][b["weights"] > 0] for b in batches])
    shares = np.bincount(targets) / len(targets)
    entropy = -sum(p * np.log(p) for p in shares if p)
    assert np.mean(found[-10:]) < 0.7 * entropy, (found[-10:], entropy)


def test_an_objective_without_its_noise_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = configs.load_file("configs/pretrain/tiny_mlm.py")
    del settings.data.corruption
    with pytest.raises(ConfigError, match=r"'mlm', but config.data.corruption is None"):
        main.check_training(settings)


def test_rows_for_another_shape_are_refused():
    rows = {"tokens": np.zeros((1, 4)), "encoder_tokens": np.zeros((1, 4))}
    with pytest.raises(ConfigError, match="an encoder side, but the model is of shape 'decoder'"):
        check_rows(config("tiny"), rows)
    with pytest.raises(ConfigError, match=r"no encoder side, .*'encoder_decoder'"):
        check_rows(config("t5_small"), {"tokens": rows["tokens"]})
    with pytest.raises(ConfigError, match=r"a prefix, .*'encoder'"):
        check_rows(config("bert_tiny"), {"tokens": rows["tokens"], "prefix": rows["tokens"]})

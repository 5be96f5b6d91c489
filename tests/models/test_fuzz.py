# SPDX-License-Identifier: Apache-2.0
"""Damaged Hugging Face folders: a clear error or a model, never a crash or a huge allocation."""

import importlib.util
import json
import random
import resource
from pathlib import Path

import jax
import numpy as np
import pytest

from llm.errors import UserError
from llm.models import convert

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = ("llama3", "gemma3", "qwen2_window", "qwen3_moe", "phi3", "gpt2", "roberta", "t5_v1_1")
ODD = (0, -1, 1, 3, 10**6, 10**12, 10**400, -0.5, 1e308, True, None, "", "x", [], {}, [1], {"a": 1})


def _parity():
    spec = importlib.util.spec_from_file_location("parity", GOLDENS / "parity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = _parity()


@pytest.fixture
def little_memory():
    """Refuse allocations far beyond what these models need."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def _change_config(raw, rng):
    """Replace, remove or add a value, at the top or one level down."""
    raw = json.loads(json.dumps(raw))
    place = raw
    inner = [key for key, value in raw.items() if isinstance(value, dict) and value]
    if inner and rng.random() < 0.3:
        place = raw[rng.choice(inner)]
    key = rng.choice([*place, "sliding_window", "rope_scaling", "layer_types", "surprise"])
    if rng.random() < 0.1:
        place.pop(key, None)
    else:
        place[key] = rng.choice(ODD)
    return raw


def _change_bytes(content, rng):
    """Flip, cut, repeat or insert bytes, mostly in the header."""
    content = bytearray(content)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(end if rng.random() < 0.8 else len(content))
        what = rng.random()
        if what < 0.6:
            content[at] = rng.choice([rng.randrange(256), *b'0123456789,[]{}":-'])
        elif what < 0.7:
            del content[at : at + rng.randint(1, 40)]
        elif what < 0.8:
            content[at:at] = content[at : at + rng.randint(1, 40)]
        elif what < 0.9:
            content[at:at] = b"9" * rng.randint(1, 20)
        else:
            del content[at + 1 :]
        if len(content) < 9:
            break
        end = min(max(9, end), len(content))
    return bytes(content)


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is limited by Linux's /proc"
)
@pytest.mark.parametrize("count", [160, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_folders(count, tmp_path, little_memory):
    rng = random.Random(count)
    folders = [parity.write_folder(name, tmp_path / name) for name in CASES]
    clean = [
        ((f / "config.json").read_text(), (f / "model.safetensors").read_bytes()) for f in folders
    ]
    outcomes = {"loaded": 0, "refused": 0}
    for number in range(count):
        which = rng.randrange(len(folders))
        folder, (settings, weights) = folders[which], clean[which]
        config, data = json.loads(settings), weights
        if rng.random() < 0.5:
            config = _change_config(config, rng)
        else:
            data = _change_bytes(data, rng)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(data)
        try:
            _, params = convert.load_hf(folder, place=lambda name, leaf: leaf)
        except UserError as error:
            outcomes["refused"] += 1
            assert str(error), number
        else:
            outcomes["loaded"] += 1
            assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    assert min(outcomes.values()) > count / 20, outcomes

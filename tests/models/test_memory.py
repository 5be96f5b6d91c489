# SPDX-License-Identifier: Apache-2.0
"""Loading holds little more than the weights: measured by the kernel in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import llm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
    ),
]

# Resident memory before, highest resident memory while loading; in units of the weights.
LOAD = """
import sys
import jax
import llm
from llm.core import sharding
from llm.generate import loading
from llm.models import convert, gguf

def memory(key):
    line = next(x for x in open("/proc/self/status") if x.startswith(key))
    return int(line.split()[1]) * 1024

sizes = {"data": 1, "fsdp": -1, "tensor": 1, "context": 1, "expert": 1, "stage": 1, "dcn": 1}
mesh = sharding.make_mesh(sizes) if sys.argv[2] == "mesh" else None
jax.block_until_ready(jax.numpy.zeros(8))
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
lm = llm.load(sys.argv[1], mesh=mesh)
leaves = jax.tree.leaves(jax.block_until_ready(lm.params))
size = sum(leaf.nbytes for leaf in leaves)
shards = [s for leaf in leaves for s in leaf.addressable_shards if s.device == jax.devices()[0]]
print(size, (memory("VmHWM") - before) / size, sum(s.data.nbytes for s in shards) / size)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """250 MB of a Llama, as safetensors and as GGUF, in float32 and in eight bits."""
    D, F, L, V = 768, 2048, 8, 8000
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (V, D), "model.norm": (D,)}
    for i in range(L):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj": (D, D) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj": (F, D) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj"] = (D, F)
        shapes |= {f"{at}.{n}_layernorm": (D,) for n in ("input", "post_attention")}
    folder = tmp_path_factory.mktemp("models")
    (folder / "hf").mkdir()
    arrays = {
        f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }
    save_file(arrays, folder / "hf" / "model.safetensors")
    raw = {
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "num_hidden_layers": L,
        "num_attention_heads": 12,
        "intermediate_size": F,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    (folder / "hf" / "config.json").write_text(json.dumps(raw))
    lm = llm.load(folder / "hf")
    lm.save(folder / "f32.gguf", format="gguf")
    lm.save(folder / "q8_0.gguf", format="gguf", kind="Q8_0")
    return folder


@pytest.mark.parametrize(
    ("source", "where"),
    [("hf", "device"), ("hf", "mesh"), ("f32.gguf", "device"), ("q8_0.gguf", "device")],
)
def test_the_peak_is_little_above_the_weights(models, source, where):
    """At most 1.3 times the weights; onto a mesh each of eight devices gets an eighth."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(models / source), where],
        capture_output=True,
        text=True,
        check=True,
    )
    size, peak, share = map(float, done.stdout.split())
    assert size > 200e6
    assert peak <= 1.3
    assert share == pytest.approx(1 / 8 if where == "mesh" else 1, rel=0.01)

# SPDX-License-Identifier: Apache-2.0
"""What was compiled is counted, and kept where an accelerator is."""

import jax
import jax.numpy as jnp

from llm.core import compilation


def test_new_shapes_are_counted_and_old_ones_are_not():
    double = jax.jit(lambda x: x * 2)
    inputs = [jnp.ones(n) for n in (3, 4)]
    before = compilation.count()
    double(inputs[0])
    assert compilation.count() == before + 1
    double(inputs[0])
    assert compilation.count() == before + 1
    double(inputs[1])
    assert compilation.count() == before + 2


def test_programs_are_kept_on_accelerators_unless_a_folder_is_named(monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    compilation.keep("gs://bucket/run/programs")
    assert kept == {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation.keep("gs://bucket/run/programs")
    assert kept == {"jax_compilation_cache_dir": "gs://bucket/run/programs"}
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    kept.clear()
    compilation.keep("runs/tiny/programs")
    assert kept == {}

# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: the same under any layout, another for any change."""

import jax
import jax.numpy as jnp
import numpy as np

from llm.core.fingerprint import fingerprint
from llm.core.sharding import make_mesh


def _arrays():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(8, 6)).astype(np.float32),
        "b": rng.integers(0, 255, (16,)).astype(np.uint8),
        "c": rng.normal(size=(4, 2, 3)).astype(jnp.bfloat16),
        "d": np.float32(3),
        "e": np.zeros((0, 4), np.float32),
    }


def test_the_mesh_does_not_matter():
    arrays = _arrays()
    mesh = make_mesh({"data": 2, "fsdp": 4})
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    laid = {**arrays, "a": jax.device_put(arrays["a"], split)}
    laid["b"] = jax.device_put(arrays["b"], split)
    assert fingerprint(laid) == fingerprint(arrays) == fingerprint(dict(reversed(arrays.items())))


def test_every_change_matters():
    arrays = _arrays()
    a = arrays["a"]
    flipped = a.copy()
    flipped.view(np.uint32)[3, 2] ^= 1
    signed = np.where(np.arange(6) == 1, -a, a)
    zero, minus = np.zeros_like(a), -np.zeros_like(a)
    found = [
        fingerprint(arrays | change)
        for change in (
            {},
            {"a": flipped},
            {"a": a[::-1].copy()},
            {"a": a.reshape(6, 8)},
            {"a": a.astype(jnp.bfloat16)},
            {"a": signed},
            {"a": zero},
            {"a": minus},
            {"b": arrays["b"].view(np.int8)},
            {"f": a},
        )
    ]
    assert len(set(found)) == len(found)

# SPDX-License-Identifier: Apache-2.0
"""New keys and values reach their slots of the pages, and nothing else changes."""

import jax.numpy as jnp
import numpy as np

from llm.models import paged
from llm.models.paged import PAGE, Place


def test_single_tokens_go_to_their_slots():
    rng = np.random.default_rng(0)
    buffers = {name: rng.normal(size=(2, 5, 3, PAGE, 4)).astype("float32") for name in ("k", "v")}
    table = np.array([[4, 1], [2, 0]], np.int32)
    slots = np.array([[PAGE - 1, PAGE, PAGE + 1], [5, 6, 7]], np.int32)
    real = np.array([[True, True, True], [True, False, False]])
    new = {name: rng.normal(size=(2, 3, 3, 4)).astype("float32") for name in ("k", "v")}
    expected = {name: x.copy() for name, x in buffers.items()}
    for name, x in expected.items():
        for row, token in zip(*np.nonzero(real), strict=True):
            slot = slots[row, token]
            x[1, table[row, slot // PAGE], :, slot % PAGE] = new[name][row, token]
    place = Place(*map(jnp.asarray, (table, slots, real)))
    pools = {name: jnp.asarray(x) for name, x in buffers.items()}
    found = paged.write(pools, 1, place, jnp.asarray(new["k"]), jnp.asarray(new["v"]))
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)

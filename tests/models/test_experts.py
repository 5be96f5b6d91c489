# SPDX-License-Identifier: Apache-2.0
"""Experts split over devices give what one device gives, however unevenly tokens choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding, shards
from llm.models import experts

B, T, D, F, E, J, R = 8, 4, 8, 16, 8, 2, 3


def arrays(choice, seed=0):
    """Return x, choices, weights, the experts' matrices with low-rank updates, a cotangent."""
    rng = np.random.default_rng(seed)
    chosen = {
        "random": np.argsort(rng.random((B, T, E)), axis=-1)[..., :J],
        "one device": np.broadcast_to(np.array([2, 3]), (B, T, J)),
        "by row": np.broadcast_to((np.arange(B)[:, None, None] + np.array([0, 4])) % E, (B, T, J)),
    }[choice]
    shapes = [(E, D, F), (E, D, F), (E, F, D), (E, D, R), (E, R, F), (E, F, R), (E, R, D)]
    matrices = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    x, cotangent = (rng.normal(size=(B, T, D)).astype(np.float32) for _ in range(2))
    return x, chosen.astype(np.int32), rng.random((B, T, J), np.float32), matrices, cotangent


def value_and_gradients(x, chosen, weights, matrices, cotangent):
    def value(x, weights, gate, up, down, *factors):
        updates = {"gate": factors[:2], "down": factors[2:]}
        w = experts.Experts(gate, up, down, jax.nn.silu, updates=updates)
        return experts.grouped(x, chosen, weights, w)

    out, pull = jax.vjp(value, x, weights, *matrices)
    return out, *pull(cotangent)


def close(one, other):
    for left, right in zip(one, other, strict=True):
        right = jax.device_get(right)
        assert np.linalg.norm(left - right) <= 1e-5 * np.linalg.norm(left)


@pytest.mark.parametrize("choice", ["random", "one device", "by row"])
def test_split_experts_equal_whole_ones(choice):
    given = arrays(choice)
    whole = jax.jit(value_and_gradients)(*given)
    with sharding.use_layout(sharding.make_mesh({"data": 2, "expert": 2, "tensor": 2})):
        close(whole, jax.jit(value_and_gradients)(*given))


def documented(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, axis_name):
    """Do what `jax.lax.ragged_all_to_all` is documented to do, with a loop over the senders."""
    me = jax.lax.axis_index(axis_name)
    rows = jax.lax.all_gather(operand, axis_name)
    where = [
        jax.lax.all_gather(each, axis_name)[:, me]
        for each in (input_offsets, send_sizes, output_offsets)
    ]
    place = jnp.arange(len(output))
    for sender in range(len(rows)):
        begin, size, at = (each[sender] for each in where)
        here = (place >= at) & (place < at + size)
        taken = rows[sender][jnp.clip(place - at + begin, 0, len(operand) - 1)]
        output = jnp.where(here[:, None], taken, output)
    # What a device says it receives must be what is sent to it.
    return jnp.where(jnp.all(where[1] == recv_sizes), output, jnp.nan)


def test_offsets_given_to_the_accelerators_exchange(monkeypatch):
    """The CPU has no ragged all-to-all: its offsets are tried on one written from the manual."""
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", documented)
    rng = np.random.default_rng(1)
    sizes = np.array([[0, 3, 1, 2], [4, 0, 0, 1], [1, 1, 1, 1], [0, 0, 6, 0]], np.int32)
    rows = rng.normal(size=(4, 6, 5)).astype(np.float32)  # six at each of four devices

    def exchange(native):
        def local(own):
            got = experts._exchange(own[0], jnp.asarray(sizes), 9, axis="expert", native=native)
            return got[None]

        return shards.on_shards(local, [("expert", None, None)], ("expert", None, None))(rows)

    with sharding.use_layout(sharding.make_mesh({"expert": 4, "data": 2})):
        native, picked = jax.device_get((exchange(True), exchange(False)))
    np.testing.assert_array_equal(native, picked)
    for me in range(4):
        starts = np.cumsum(sizes, axis=1) - sizes
        sent = [rows[s, starts[s, me] : starts[s, me] + sizes[s, me]] for s in range(4)]
        together = np.concatenate(sent)
        np.testing.assert_array_equal(picked[me, : len(together)], together)
        assert not picked[me, len(together) :].any()

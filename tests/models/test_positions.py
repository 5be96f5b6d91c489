# SPDX-License-Identifier: Apache-2.0
"""Position encodings against their definitions (the scalings also against Hugging Face goldens)."""

import cmath
import math

import jax.numpy as jnp
import numpy as np
import pytest

from llm.models import positions
from llm.models.presets import config


def test_rope_is_a_rotation_in_the_complex_plane():
    c = config("tiny", head_dim=8)
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 8)).astype(np.float32)
    at = np.array([[0, 1, 2, 300, 70000]])
    cos, sin = positions.rope_tables(c, jnp.asarray(at))
    y = np.asarray(positions.apply_rope(jnp.asarray(x), cos, sin))
    for t, p in enumerate(at[0]):
        for i in range(4):
            angle = float(np.float32(p) * np.float32(10_000.0 ** (-2 * i / 8)))
            turned = complex(*x[0, t, 1, [i, i + 4]]) * cmath.exp(1j * angle)
            np.testing.assert_allclose(
                y[0, t, 1, [i, i + 4]], [turned.real, turned.imag], atol=2e-5
            )


def test_partial_rope_leaves_the_rest():
    c = config("tiny", head_dim=16, rope_partial=0.25)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 1, 16)), jnp.float32)
    cos, sin = positions.rope_tables(c, jnp.arange(3)[None])
    assert cos.shape[-1] == 2
    y = positions.apply_rope(x, cos, sin)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])
    assert np.abs(y[0, 1:, :, :4] - x[0, 1:, :, :4]).max() > 0.1


@pytest.mark.parametrize("scaling", ["linear", "ntk", "yarn", "llama3"])
def test_scaled_rope_stretches_slow_waves_and_keeps_fast_ones(scaling):
    c = config(
        "tiny",
        head_dim=64,
        rope_scaling=scaling,
        rope_factor=4.0,
        rope_original_length=256,
    )
    plain, _ = positions.rope_frequencies(config("tiny", head_dim=64))
    scaled, factor = positions.rope_frequencies(c)
    np.testing.assert_allclose(scaled[-1], plain[-1] / 4, rtol=1e-6)
    np.testing.assert_allclose(scaled[0], plain[0] / (4 if scaling == "linear" else 1))
    assert factor == pytest.approx(0.1 * math.log(4) + 1 if scaling == "yarn" else 1.0)
    assert np.all(np.diff(scaled) < 0)


def test_alibi_slopes_are_the_published_ones():
    np.testing.assert_allclose(positions.alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    twelve = positions.alibi_slopes(12)  # eight as above, then every other of the sixteen
    np.testing.assert_allclose(twelve[8:], [2.0 ** (-0.5 * i) for i in (1, 3, 5, 7)])


def test_sinusoidal_table():
    table = positions.sinusoidal(jnp.array([[0, 3]]), 6)
    np.testing.assert_allclose(table[0, 0], [0, 0, 0, 1, 1, 1])
    waves = [3.0, 3 / 100.0, 3 / 10_000.0]
    want = [math.sin(w) for w in waves] + [math.cos(w) for w in waves]
    np.testing.assert_allclose(table[0, 1], want, atol=1e-6)


def test_relative_buckets_are_exact_near_and_shared_afar():
    distances = jnp.arange(-200, 201)
    one_way = np.asarray(positions.relative_buckets(distances, 32, 128, False))
    assert list(one_way[200:185:-1]) == list(range(15))  # exact up to half the buckets
    assert set(one_way[201:]) == {0}  # the future
    assert one_way[0] == one_way[200 - 128] == 31
    both = np.asarray(positions.relative_buckets(distances, 32, 128, True))
    assert list(both[200:193:-1]) == list(range(7))
    assert list(both[201:208]) == [16 + i for i in range(1, 8)]
    assert (both[0], both[-1]) == (15, 31)
    assert np.all(np.diff(both[:200]) <= 0)

# SPDX-License-Identifier: Apache-2.0
"""The product of states and weights has the values and gradients that NumPy has in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.products import contract

SIZES = {"B": 2, "T": 5, "D": 6, "N": 2, "H": 3, "F": 8, "V": 11, "C": 6}


@pytest.mark.parametrize(
    "equation",
    ["BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF", "BTF,FD->BTD", "BTD,VD->BTV", "BD,DC->BC"],
)
def test_values_and_gradients_are_those_of_an_einsum(equation):
    inputs, output = equation.split("->")
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal([SIZES[c] for c in part]) for part in inputs.split(","))
    dy = rng.standard_normal([SIZES[c] for c in output])
    left, right = inputs.split(",")
    shared = [c for c in right if c in left]
    places = tuple(left.index(c) for c in shared), tuple(right.index(c) for c in shared)
    y, pull = jax.vjp(lambda a, b: contract(a, b, places), jnp.float32(x), jnp.float32(kernel))
    wanted = (
        np.einsum(equation, x, kernel),
        np.einsum(f"{output},{right}->{left}", dy, kernel),
        np.einsum(f"{left},{output}->{right}", x, dy),
    )
    for got, want in zip((y, *pull(jnp.float32(dy))), wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_axes_may_be_summed_in_any_order():
    rng = np.random.default_rng(1)
    x, kernel, dy = (rng.standard_normal(s) for s in ((4, 2, 3), (3, 5, 2), (4, 5)))
    places = ((1, 2), (2, 0))
    y, pull = jax.vjp(lambda a, b: contract(a, b, places), jnp.float32(x), jnp.float32(kernel))
    np.testing.assert_allclose(y, np.einsum("tnh,hdn->td", x, kernel), atol=1e-5)
    dx, dk = pull(jnp.float32(dy))
    np.testing.assert_allclose(dx, np.einsum("td,hdn->tnh", dy, kernel), atol=1e-5)
    np.testing.assert_allclose(dk, np.einsum("tnh,td->hdn", x, dy), atol=1e-5)

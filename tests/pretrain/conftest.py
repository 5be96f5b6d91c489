# SPDX-License-Identifier: Apache-2.0
"""Compile fast rather than well what runs once."""

import functools

import jax
import pytest


@pytest.fixture(scope="session")
def jit():
    """`jax.jit` with the cheapest CPU code generation."""
    cheap = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return functools.partial(jax.jit, compiler_options=cheap)

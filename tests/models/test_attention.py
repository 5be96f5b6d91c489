# SPDX-License-Identifier: Apache-2.0
"""Every attention backend against a float64 NumPy reference, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.errors import ConfigError
from llm.models import attention as att
from llm.models.positions import alibi_bias, alibi_slopes
from llm.models.splash import splash

B, T, N, K, H = 2, 16, 4, 2, 8


def _arrays(seed, S=T):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape)

    return draw(B, T, N, H), draw(B, S, K, H), draw(B, S, K, H), draw(B, T, N, H)


def _packed(length=T):
    """Two documents and padding in row 0, one document with padding in row 1."""
    segments = np.zeros((B, length), np.int32)
    positions = np.zeros((B, length), np.int32)
    for row, sizes in enumerate([(6, 8), (11,)]):
        start = 0
        for i, size in enumerate(sizes):
            segments[row, start : start + size] = i + 1
            positions[row, start : start + size] = np.arange(size)
            start += size
        positions[row, start:] = np.arange(length - start)
    return segments, positions


CASES = {
    "full": dict(causal=False),
    "causal": dict(),
    "packed": dict(packed=True),
    "packed_encoder": dict(packed=True, causal=False),
    "window": dict(window=5),
    "packed_window": dict(packed=True, window=4),
    "two_sided_window": dict(causal=False, window=3),
    "softcap": dict(packed=True, softcap=1.5),
    "scale": dict(scale=1.0),
    "alibi": dict(packed=True, alibi=True),
    "sinks": dict(packed=True, sinks=True),
    "prefix": dict(packed=True, prefix=True),
}


def _places(case, length):
    """Return segments (None = all one) and positions of a case."""
    if case.get("packed"):
        return _packed(length)
    return None, np.tile(np.arange(length), (B, 1))


def _reference(q, k, v, case):
    """Attend query by query in float64."""
    segments, positions = _places(case, q.shape[1])
    scale = case.get("scale", q.shape[-1] ** -0.5)
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        distance = positions[b, t] - positions[b]
        seen = np.ones(len(distance), bool)
        if case.get("causal", True):
            seen = (distance >= 0) | (bool(case.get("prefix")) & (positions[b] < 4))
        if case.get("window"):
            seen &= abs(distance) < case["window"]
        if segments is not None:
            seen &= segments[b, t] == segments[b]
        if not seen.any():
            continue
        logits = k[b, seen, n // (N // K)] @ q[b, t, n] * scale
        if case.get("softcap"):
            logits = case["softcap"] * np.tanh(logits / case["softcap"])
        if case.get("alibi"):
            logits = logits - alibi_slopes(N)[n] * abs(distance[seen])
        weights = np.exp(logits)
        total = weights.sum() + (np.exp(_SINKS[n]) if case.get("sinks") else 0.0)
        out[b, t, n] = (weights / total) @ v[b, seen, n // (N // K)]
    return out


_SINKS = np.array([0.5, -1.0, 2.0, 0.0])


def _ask(q, k, v, case, backend, dtype=jnp.float32):
    segments, positions = _places(case, q.shape[1])
    return att.attention(
        jnp.asarray(q, dtype),
        jnp.asarray(k, dtype),
        jnp.asarray(v, dtype),
        q_positions=jnp.asarray(positions),
        k_positions=jnp.asarray(positions),
        q_segments=None if segments is None else jnp.asarray(segments),
        k_segments=None if segments is None else jnp.asarray(segments),
        causal=case.get("causal", True),
        window=case.get("window", 0),
        softcap=case.get("softcap", 0.0),
        scale=case.get("scale"),
        backend=backend,
        bias=functools.partial(alibi_bias, N) if case.get("alibi") else None,
        sinks=jnp.asarray(_SINKS, jnp.float32) if case.get("sinks") else None,
        prefix=jnp.asarray(positions < 4) if case.get("prefix") else None,
        ordered=True,
        chunk=5,
    )


def slow_case(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


_REFUSED = {("dot_product", "softcap"), ("dot_product", "sinks")}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["xla", "dot_product", "chunked"])
def test_backend_equals_the_float64_reference(backend, name, jit):
    """Values directly; gradients along random directions against central differences."""
    case = CASES[name]
    if (backend, name) in _REFUSED:
        with pytest.raises(ConfigError, match=backend):
            _ask(*_arrays(0)[:3], case, backend)
    else:
        _check(case, backend, len(name), jit)


def _check(case, backend, seed, jit):
    _compare(_arrays(seed), case, functools.partial(_ask, case=case, backend=backend), jit)


def _compare(arrays, case, attend, jit, atol=2e-6):
    """Compare values with the reference, and gradients with its central differences."""
    *arrays, direction = arrays

    @jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(q, k, v):
        out = attend(q, k, v)
        return jnp.sum(out * direction), out

    (_, out), gradients = run(*(jnp.asarray(x, jnp.float32) for x in arrays))
    np.testing.assert_allclose(out, _reference(*arrays, case), atol=atol)
    rng = np.random.default_rng(7)
    step = 1e-5
    along = [rng.normal(size=x.shape) for x in arrays]
    moved = [[x + sign * step * a for x, a in zip(arrays, along, strict=True)] for sign in (1, -1)]
    plus, minus = (np.sum(_reference(*m, case) * direction) for m in moved)
    got = sum(np.sum(g * a) for g, a in zip(gradients, along, strict=True))
    np.testing.assert_allclose(got, (plus - minus) / (2 * step), rtol=2e-5, atol=1e-4)


def _draw_case(seed):
    """Draw what attention may be asked for; every feature joins with every other."""
    rng = np.random.default_rng(seed)
    case = {"packed": bool(rng.integers(2)), "causal": bool(rng.integers(2))}
    for name, value in (
        ("window", int(rng.integers(1, 9))),
        ("softcap", 1.5),
        ("alibi", True),
        ("sinks", True),
        ("prefix", case["causal"]),
        ("scale", 0.7),
    ):
        if rng.random() < 0.4:
            case[name] = value
    return case


@pytest.mark.parametrize("seed", [*range(3), *(slow_case(seed) for seed in range(3, 40))])
def test_random_cases_equal_the_float64_reference(seed, jit):
    """Every backend honours any mixture of features, forward and backward, or refuses it."""
    case = _draw_case(seed)
    for backend in ("xla", "dot_product", "chunked"):
        if backend == "dot_product" and (case.get("softcap") or case.get("sinks")):
            with pytest.raises(ConfigError, match=backend):
                _ask(*_arrays(seed)[:3], case, backend)
        else:
            _check(case, backend, seed, jit)


def test_a_query_without_keys_gets_zeros(jit):
    q, k, v, _ = _arrays(0)
    nowhere = {
        "q_positions": jnp.zeros((B, T), jnp.int32),
        "k_positions": jnp.zeros((B, T), jnp.int32),
        "q_segments": jnp.ones((B, T), jnp.int32),
        "k_segments": jnp.zeros((B, T), jnp.int32),
    }
    for backend in ("xla", "dot_product", "chunked"):
        run = jit(functools.partial(att.attention, backend=backend, **nowhere))
        out = run(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
        np.testing.assert_array_equal(out, 0)


def test_keys_of_another_length(jit):
    q, _, _, _ = _arrays(0)
    _, k, v, _ = _arrays(1, S=10)
    args = dict(
        q_positions=jnp.tile(jnp.arange(T)[None], (B, 1)),
        k_positions=jnp.tile(jnp.arange(10)[None], (B, 1)),
        causal=False,
        chunk=4,
    )
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    whole = jit(functools.partial(att.attention, backend="xla", **args))(*arrays)
    np.testing.assert_allclose(
        jit(functools.partial(att.attention, backend="chunked", **args))(*arrays), whole, atol=1e-6
    )


def _splash_request(case, length):
    """Return what the kernel is asked for in a case."""
    segments, positions = _places(case, length)
    positions = jnp.asarray(positions)
    segments = None if segments is None else jnp.asarray(segments)
    return att.Request(
        positions,
        positions,
        segments,
        segments,
        causal=case.get("causal", True),
        window=case.get("window", 0),
        softcap=case.get("softcap", 0.0),
        scale=case.get("scale", 0.125),
        bias=functools.partial(alibi_bias, N) if case.get("alibi") else None,
        sinks=jnp.asarray(_SINKS, jnp.float32) if case.get("sinks") else None,
        prefix=positions < 4 if case.get("prefix") else None,
        ordered=True,
        shared=False,
        chunk=32,
    )


_NOT_SPLASH = {"alibi": "bias", "sinks": "sinks", "prefix": "prefix"}
_FAST_SPLASH = ("packed_window", *_NOT_SPLASH)


@pytest.mark.parametrize(
    "name", [name if name in _FAST_SPLASH else slow_case(name) for name in CASES]
)
def test_splash_kernel_equals_the_float64_reference(name, jit):
    """The Pallas kernels, interpreted, forward and backward; what they lack is refused."""
    case, length = CASES[name], 128
    rng = np.random.default_rng(3)
    q, k, v, direction = (rng.normal(size=(B, length, heads, 64)) for heads in (N, K, K, N))
    attend = functools.partial(splash, r=_splash_request(case, length), interpret=True)
    if name in _NOT_SPLASH:
        with pytest.raises(ConfigError, match=f"splash.*{_NOT_SPLASH[name]}"):
            attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    else:
        _compare((q, k, v, direction), case, attend, jit, atol=2e-5)


@pytest.mark.parametrize(
    ("length", "changes", "why"),
    [
        (130, {}, "130 is not a multiple of 128"),
        (128, {"ordered": False}, "self-attention without a cache"),
    ],
)
def test_splash_refuses_other_shapes(length, changes, why):
    request = _splash_request({}, length)._replace(**changes)
    q, k = (jnp.zeros((B, length, heads, 64)) for heads in (N, K))
    with pytest.raises(ConfigError, match=why):
        splash(q, k, k, request, interpret=True)


def test_splash_refuses_other_platforms():
    q, k, v, _ = _arrays(0)
    with pytest.raises(ConfigError, match="not on cpu"):
        _ask(q, k, v, CASES["causal"], "splash")


def test_unknown_backend():
    q, k, v, _ = _arrays(0)
    with pytest.raises(ConfigError, match="Did you mean 'splash'"):
        _ask(q, k, v, CASES["causal"], "splas")


def test_chunked_memory_does_not_grow_with_the_square(jit):
    """Temporary memory of forward and backward: linear in length (XLA's own analysis)."""

    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        at = jnp.arange(length)[None]

        def loss(q, k, v):
            return att.attention(
                q, k, v, q_positions=at, k_positions=at, backend="chunked", ordered=True, chunk=128
            ).sum()

        compiled = jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(2048) < 5 * temporaries(512)

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


def _reference(q, k, v, case):
    """Attend pair by pair in float64; also return what the gradients need."""
    segments, positions = _packed() if case.get("packed") else (None, None)
    if positions is None:
        positions = np.tile(np.arange(T), (B, 1))
    scale = case.get("scale", H**-0.5)
    out = np.zeros(q.shape)
    for b in range(B):
        for n in range(N):
            for t in range(T):
                logits, seen = [], []
                for s in range(T):
                    distance = int(positions[b, t]) - int(positions[b, s])
                    prefix = bool(case.get("prefix")) and positions[b, s] < 4
                    if case.get("causal", True) and distance < 0 and not prefix:
                        continue
                    if case.get("window") and abs(distance) >= case["window"]:
                        continue
                    if segments is not None and segments[b, t] != segments[b, s]:
                        continue
                    logit = q[b, t, n] @ k[b, s, n // (N // K)] * scale
                    if case.get("softcap"):
                        logit = case["softcap"] * np.tanh(logit / case["softcap"])
                    if case.get("alibi"):
                        logit -= alibi_slopes(N)[n] * abs(distance)
                    logits.append(logit)
                    seen.append(s)
                if not seen:
                    continue
                weights = np.exp(np.array(logits))
                total = weights.sum() + (np.exp(_SINKS[n]) if case.get("sinks") else 0.0)
                out[b, t, n] = (weights / total) @ v[b, seen, n // (N // K)]
    return out


_SINKS = np.array([0.5, -1.0, 2.0, 0.0])


def _ask(q, k, v, case, backend, dtype=jnp.float32):
    segments, positions = _packed() if case.get("packed") else (None, None)
    if positions is None:
        positions = np.tile(np.arange(T), (B, 1))
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
    q, k, v, direction = _arrays(seed)

    @jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def run(q, k, v):
        out = _ask(q, k, v, case, backend)
        return jnp.sum(out * direction), out

    (_, out), gradients = run(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(out, _reference(q, k, v, case), atol=2e-6)
    rng = np.random.default_rng(7)
    step = 1e-5
    along = [rng.normal(size=x.shape) for x in (q, k, v)]
    moved = [
        [x + sign * step * a for x, a in zip((q, k, v), along, strict=True)] for sign in (1, -1)
    ]
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


@pytest.mark.parametrize(
    "name", ["packed_window", slow_case("softcap"), slow_case("packed_encoder")]
)
def test_splash_kernel_arithmetic(name, jit):
    """The Pallas kernels, interpreted, agree with the reference backend, forward and backward."""
    case, length = CASES[name], 128
    rng = np.random.default_rng(3)
    q, k, v = (
        jnp.asarray(rng.normal(size=(B, length, heads, 64)), jnp.float32) for heads in (N, K, K)
    )
    segments, positions = (jnp.asarray(x) for x in _packed(length))
    request = att.Request(
        positions,
        positions,
        segments,
        segments,
        causal=case.get("causal", True),
        window=case.get("window", 0),
        softcap=case.get("softcap", 0.0),
        scale=0.125,
        bias=None,
        sinks=None,
        prefix=None,
        ordered=True,
        shared=False,
        chunk=32,
    )
    direction = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def both(backend):
        def loss(q, k, v):
            out = backend(q, k, v)
            return jnp.sum(out * direction), out

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

    run = jit(
        lambda q, k, v: (
            both(lambda *x: splash(*x, request, interpret=True))(q, k, v),
            both(lambda *x: att.xla(*x, request))(q, k, v),
        )
    )
    (gradients, got), (wanted, values) = run(q, k, v)
    np.testing.assert_allclose(got, values, atol=2e-5)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


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

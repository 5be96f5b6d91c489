# SPDX-License-Identifier: Apache-2.0
"""Ring attention over split sequences equals the whole matrix on one device, gradients as well."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding
from llm.errors import ConfigError
from llm.models import zigzag
from llm.models.attention import attention

B, T, N, K, H = 2, 32, 4, 2, 8


def arrays(seed=0, length=T):
    """Return q, k, v, sinks, a cotangent, and packed segments with their positions."""
    rng = np.random.default_rng(seed)
    heads = [rng.normal(size=(B, length, n, H)).astype(np.float32) for n in (N, K, K, N)]
    cut, end = rng.integers(5, 12, (B, 1)), rng.integers(20, length + 1, (B, 1))
    place = np.arange(length)[None]
    segments = np.where(place < cut, 1, 2) * (place < end)
    positions = np.where(place < cut, place, place - cut)
    prefix = (place % 5 == 1) & (place < cut)
    sinks = rng.normal(size=N).astype(np.float32)
    return *heads, sinks, segments.astype(np.int32), positions.astype(np.int32), prefix


def attend(backend, options):
    def run(q, k, v, sinks, positions, segments, prefix):
        return attention(
            q,
            k,
            v,
            q_positions=positions,
            k_positions=positions,
            q_segments=segments if "packed" in options else None,
            k_segments=segments if "packed" in options else None,
            sinks=sinks if "sinks" in options else None,
            prefix=prefix if "prefix" in options else None,
            causal="both" not in options,
            window=5 if "window" in options else 0,
            softcap=2.0 if "softcap" in options else 0.0,
            chunk=4,
            backend=backend,
        )

    return run


def both(backend, options, rearrange):
    """Return the value and all gradients as one jitted function of arrays in row order."""
    run = attend(backend, options)

    def whole(q, k, v, cotangent, sinks, segments, positions, prefix):
        def value(q, k, v, sinks):
            move, back = (zigzag.arrange, zigzag.restore) if rearrange else (lambda x: x,) * 2
            rows = [move(x) for x in (positions, segments, prefix)]
            return back(run(move(q), move(k), move(v), sinks, *rows))

        out, pull = jax.vjp(value, q, k, v, sinks)
        return out, *pull(cotangent)

    return jax.jit(whole)


@pytest.mark.parametrize(
    ("options", "mesh", "rearrange"),
    [
        (("packed",), {"context": 4, "tensor": 2}, True),
        (("packed", "window", "softcap", "sinks"), {"context": 4, "data": 2}, True),
        (("packed", "prefix"), {"context": 8}, False),
        (("both", "window"), {"context": 2, "data": 2, "tensor": 2}, False),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, tuple | dict) else str(x),
)
def test_ring_equals_the_whole_matrix(options, mesh, rearrange):
    given = arrays()
    expected = both("xla", options, False)(*given)
    with sharding.use_layout(sharding.make_mesh(mesh)):
        found = both("ring", options, rearrange)(*given)
    for left, right in zip(expected, found, strict=True):
        scale = float(jnp.linalg.norm(left)) + 1e-6
        assert float(jnp.linalg.norm(left - jax.device_get(right))) <= 1e-5 * scale


def test_no_device_holds_all_keys():
    """Keys go round by collective-permute; nothing gathers them, forwards or backwards."""
    with sharding.use_layout(sharding.make_mesh({"context": 8})) as layout:
        place = sharding.batch_sharding(layout.mesh, 4), sharding.batch_sharding(layout.mesh, 2)
        q, k, v, cotangent, sinks, segments, positions, prefix = arrays()
        heads = [jax.device_put(x, place[0]) for x in (q, k, v, cotangent)]
        rows = [jax.device_put(x, place[1]) for x in (segments, positions, prefix)]
        text = both("ring", ("packed",), False).lower(*heads, sinks, *rows).compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text


def largest_array(length):
    """Lower the gradient of a scan over two layers; return the elements of its largest array."""

    def loss(q, k, v, positions, segments):
        def layer(q, _):
            where = {"q_positions": positions, "k_positions": positions}
            packed = {"q_segments": segments, "k_segments": segments}
            return attention(q, k, v, **where, **packed, chunk=64, backend="ring"), None

        return jnp.sum(jax.lax.scan(layer, q, None, length=2)[0])

    shapes = [jax.ShapeDtypeStruct((B, length, n, H), "float32") for n in (N, K, K)]
    rows = [jax.ShapeDtypeStruct((B, length), "int32")] * 2
    with sharding.use_layout(sharding.make_mesh({"context": 4, "data": 2})):
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes, *rows).as_text()
    arrays = re.findall(r"tensor<((?:\d+x)+)(?:f32|i1|i32)>", text)
    return max(math.prod(int(n) for n in dims[:-1].split("x")) for dims in arrays)


def test_memory_of_a_scan_over_layers_grows_with_the_length():
    """Masks of the blocks, the same in every layer, are not kept for all of them."""
    assert largest_array(8192) == 2 * largest_array(4096)


def test_zigzag_shares_causal_work_evenly():
    """Count the pairs of query and key that each device computes: all the same."""
    with sharding.use_layout(sharding.make_mesh({"context": 8})):
        place = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
        rows = jax.device_get(jax.jit(zigzag.arrange)(place))
        back = jax.device_get(jax.jit(lambda x: zigzag.restore(zigzag.arrange(x)))(place))
    np.testing.assert_array_equal(back, place)
    owned = rows[0].reshape(8, -1)
    assert sorted(owned.ravel()) == list(range(T))
    assert len({int((own + 1).sum()) for own in owned}) == 1


def test_lengths_that_do_not_cut_into_pieces_are_refused():
    with (
        sharding.use_layout(sharding.make_mesh({"context": 4, "data": 2})),
        pytest.raises(ConfigError, match=r"8 equal pieces.*mesh.context=4[^0-9]*24"),
    ):
        zigzag.wanted(22)

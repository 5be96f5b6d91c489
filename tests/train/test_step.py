# SPDX-License-Identifier: Apache-2.0
"""The update is the same mathematics whatever the split: microbatches, meshes, dropout, NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import sharding, trees
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.train import initial, optim, run
from llm.train.objective import cross_entropy
from llm.train.step import State, example_keys, make_step

CONFIG = TransformerConfig(
    vocab_size=64, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64, max_length=16
)
BATCH, LENGTH = 16, 16


def rows(seed=0, rows=BATCH):
    """Packed rows: two documents and some padding each, with uneven weights."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 64, (rows, LENGTH + 1))
    cut, end = rng.integers(3, 8, rows), rng.integers(10, LENGTH + 1, rows)
    place = np.arange(LENGTH)
    segments = np.where(place < cut[:, None], 1, 2) * (place < end[:, None])
    positions = np.where(place < cut[:, None], place, place - cut[:, None])
    return {
        "tokens": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "weights": ((segments > 0) * rng.random((rows, LENGTH))).astype(np.float32),
        "segments": segments.astype(np.int32),
        "positions": np.where(segments > 0, positions, 0).astype(np.int32),
    }


@functools.cache
def update(mesh=(("data", 1),), microbatches=1, dropout=0.1, chunk=0):
    """Take two SGD steps on a mesh; return losses, first gradients and parameters as NumPy."""
    sizes = dict(mesh)
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    config = TransformerConfig(**{**CONFIG.__dict__, "dropout": dropout})
    model = Transformer(config)
    with sharding.use_layout(sharding.make_mesh(sizes, devices)) as layout:
        bones = initial.skeleton(model, layout)
        schedule = {"name": "constant", "peak": 0.1}
        choice = run.make_optimizer(
            10, bones.axes, schedule, name="sgd", clip_norm=0.0, momentum=0.9
        )
        objective = cross_entropy(model, z_loss=1e-3, chunk=chunk)
        where = initial.placement(objective, choice, bones, layout, ema=False)
        params = initial.fresh_parameters(model, bones, layout, seed=1)
        state, frozen = initial.begin(params, objective, choice, bones, where)
        step = jax.jit(
            make_step(objective, choice, microbatches=microbatches),
            out_shardings=(where.state, None),
        )
        place = run.placer(layout.mesh)
        losses = []
        for number in range(2):
            state, metrics = step(state, frozen, place(rows(number)), jax.random.key(3))
            losses.append(float(metrics["loss"]))
            if number == 0:  # the first momentum is the gradient
                grads = jax.device_get(state.opt_state)
        return losses, trees.flatten(grads), trees.flatten(jax.device_get(state.params))


def same(one, other):
    """Compare losses, gradients and parameters to 1e-5, relative, leaf by leaf."""
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    for left, right in ((one[1], other[1]), (one[2], other[2])):
        assert set(left) == set(right)
        for name in left:
            scale = np.linalg.norm(left[name])
            assert np.linalg.norm(left[name] - right[name]) <= 1e-5 * scale, name


def test_accumulation_and_chunked_logits_are_exact():
    same(update(), update(microbatches=8, chunk=4))


def test_dropout_is_on_in_these_tests():
    assert abs(update()[0][0] - update(dropout=0.0)[0][0]) > 1e-4


def test_example_keys_do_not_depend_on_the_batch():
    key = jax.random.key(0)
    few, many = example_keys(key, 4), example_keys(key, 16)
    assert (jax.random.key_data(few) == jax.random.key_data(many)[:4]).all()


def quadratic(optimizer, start=0.0, **options):
    """Return a step on the loss |w - target|² and its first state."""
    axes = {"w": ("embed", "mlp")}
    choice = run.make_optimizer(
        100, axes, {"name": "constant", "peak": 0.1}, name=optimizer, **options
    )

    def loss(params, frozen, batch, keys):
        error = ((params["w"][None] - batch["target"]) ** 2).sum(axis=(1, 2))
        return {"loss": (error.sum(), jnp.float32(len(error)))}

    from llm.train.objective import Objective, nothing
    from llm.train.step import Frozen, init_state

    state = init_state({"w": jnp.full((4, 3), start)}, choice, ema=False)
    return jax.jit(make_step(Objective(nothing, loss), choice)), state, Frozen({}, ())


@pytest.mark.parametrize("optimizer", sorted(optim.OPTIMIZERS))
def test_every_optimizer_descends(optimizer):
    # Adafactor moves in proportion to the parameters: start away from zero.
    step, state, frozen = quadratic(optimizer, start=0.5)
    batch = {"target": jnp.ones((2, 4, 3))}
    losses = []
    for _ in range(40):
        state, metrics = step(state, frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_non_finite_steps_change_nothing_and_are_counted():
    step, state, frozen = quadratic("adamw")
    good, bad = {"target": jnp.ones((2, 4, 3))}, {"target": jnp.full((2, 4, 3), jnp.nan)}
    state, _ = step(state, frozen, good, jax.random.key(0))
    kept = jax.device_get(state)
    for number in range(3):
        state, metrics = step(state, frozen, bad, jax.random.key(0))
        assert list(np.asarray(state.skipped)) == [number + 1, number + 1]
    for name in ("params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(kept, name), jax.device_get(getattr(state, name))
        )
    state, metrics = step(state, frozen, good, jax.random.key(0))
    assert list(np.asarray(state.skipped)) == [3, 0] and int(state.step) == 5
    assert np.isfinite(float(metrics["loss"]))


def test_adamw_equals_a_plain_float64_loop():
    step, state, frozen = quadratic("adamw", weight_decay=0.1, clip_norm=1.0)
    w, m, v = np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((4, 3))
    for number in range(1, 6):
        target = np.full((4, 3), float(number))
        state, metrics = step(
            state, frozen, {"target": jnp.tile(target, (2, 1, 1))}, jax.random.key(0)
        )
        grad = 2 * (w - target)
        norm = np.linalg.norm(grad)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        grad *= min(1.0, 1.0 / (norm + 1e-6))
        m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
        adam = (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.95**number)) + 1e-8)
        w = w - 0.1 * (adam + 0.1 * w)
        np.testing.assert_allclose(np.asarray(state.params["w"]), w, rtol=2e-5)


def test_ema_and_group_rates():
    step, state, frozen = quadratic("sgd", scales=(("w", 0.5),), clip_norm=0.0)
    state, _ = step(state, frozen, {"target": jnp.ones((2, 4, 3))}, jax.random.key(0))
    np.testing.assert_allclose(np.asarray(state.params["w"]), 0.1, rtol=1e-6)  # 0.5 * 0.1 * 2


def test_vectors_do_not_decay():
    axes = {"a/kernel": ("layers", "embed", "mlp"), "a/scale": ("layers", "embed"), "b": ("embed",)}
    parts = optim.make_parts(axes, no_decay="nothing")
    tree = trees.unflatten({name: 0 for name in axes})
    assert trees.flatten(parts.decay(tree)) == {"a/kernel": True, "a/scale": False, "b": False}


SCHEDULES = {
    "warmup_cosine": lambda s: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (s - 10) / 90)),
    "warmup_linear": lambda s: 1 - (s - 10) / 90,
    "wsd": lambda s: 1.0 if s <= 80 else 1 - (s - 80) / 20,
    "rsqrt": lambda s: np.sqrt(10 / s),
    "constant": lambda s: 1.0,
}


@pytest.mark.parametrize("name", sorted(optim.SCHEDULES))
def test_schedules(name):
    rate = optim.SCHEDULES[name](100, peak=1.0, warmup_steps=10)
    assert [float(rate(s)) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    for step in (10, 37, 80, 95, 99):
        assert float(rate(step)) == pytest.approx(float(SCHEDULES[name](step)), rel=1e-5)


def test_state_is_a_plain_tree():
    assert State._fields == ("step", "params", "opt_state", "ema", "skipped", "history")

# SPDX-License-Identifier: Apache-2.0
"""Expert routing against a loop over tokens in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.models.moe import MoE, auxiliary
from llm.models.presets import config
from llm.models.transformer import Transformer
from llm.train.objective import cross_entropy

B, T, D, F, E = 2, 6, 8, 12, 4


def _weights():
    rng = np.random.default_rng(0)
    shapes = {
        "router_kernel": (D, E),
        "gate_kernel": (E, D, F),
        "up_kernel": (E, D, F),
        "down_kernel": (E, F, D),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _reference(x, real, w, top, sigmoid, normalize, capacity):
    """Send tokens to experts one by one; a choice finding its expert full is lost."""
    y, dropped = np.zeros(x.shape), 0
    for b in range(B):
        free = dict.fromkeys(range(E), capacity)
        choices = []
        for t in range(T):
            logits = x[b, t] @ w["router_kernel"]
            scores = 1 / (1 + np.exp(-logits)) if sigmoid else np.exp(logits) / np.exp(logits).sum()
            best = np.argsort(-scores, kind="stable")[:top]
            share = scores[best] / (scores[best].sum() if normalize else 1.0)
            choices.append((best, share))
        for rank in range(top):  # first choices are served first
            for t in range(T):
                if not real[b, t]:
                    continue
                e, weight = choices[t][0][rank], choices[t][1][rank]
                if free[e] == 0:
                    dropped += 1
                    continue
                free[e] -= 1
                gate = x[b, t] @ w["gate_kernel"][e]
                hidden = gate / (1 + np.exp(-gate)) * (x[b, t] @ w["up_kernel"][e])
                y[b, t] += weight * (hidden @ w["down_kernel"][e])
    return y, dropped


@pytest.mark.parametrize(
    ("dispatch", "router", "normalize", "factor"),
    [
        ("dropless", "softmax", True, 1.0),
        ("dropless", "sigmoid", False, 1.0),
        ("capacity", "softmax", False, 9.0),
        ("capacity", "softmax", True, 0.7),
    ],
)
def test_experts_equal_a_loop_over_tokens(dispatch, router, normalize, factor, jit):
    c = config(
        "tiny",
        d_model=D,
        n_heads=1,
        n_kv_heads=1,
        d_expert=F,
        n_experts=E,
        router=router,
        router_normalize=normalize,
        moe_dispatch=dispatch,
        capacity_factor=factor,
    )
    x = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
    real = np.ones((B, T), bool)
    real[1, 4:] = False
    w = _weights()
    y, sums = jit(MoE(c).apply)({"params": w}, x, real.astype(np.int32))
    aux = auxiliary(sums, c)
    capacity = int(np.ceil(factor * T * 2 / E)) if dispatch == "capacity" else B * T
    wide = {name: value.astype(np.float64) for name, value in w.items()}
    want, dropped = _reference(
        x.astype(np.float64), real, wide, 2, router == "sigmoid", normalize, capacity
    )
    np.testing.assert_allclose(y[real], want[real], rtol=1e-4, atol=1e-4)
    assert float(aux["moe_dropped"][0]) == dropped
    assert (dropped > 0) == (factor == 0.7)
    _check_losses(aux, x[real].astype(np.float64), wide, router)


def _check_losses(aux, x, w, router):
    logits = x @ w["router_kernel"]
    raw = 1 / (1 + np.exp(-logits)) if router == "sigmoid" else np.exp(logits)
    share = (raw / raw.sum(-1, keepdims=True)).mean(0)
    best = np.argsort(-raw, axis=-1)[:, :2]
    load = np.bincount(best.reshape(-1), minlength=E) / (2 * len(x))
    z = np.log(np.exp(logits).sum(-1)) ** 2
    n = len(x)
    wanted = {
        "moe_balance_loss": E * (load * share).sum() * n,
        "moe_z_loss": z.sum(),
        "moe_max_load": E * load.max() * n,
        "moe_idle": (load == 0).mean() * n,
        "moe_entropy": -sum(p * np.log(p) for p in load if p > 0) / np.log(E) * n,
    }
    for name, value in wanted.items():
        total, weight = aux[name]
        np.testing.assert_allclose(total, value, rtol=1e-4, err_msg=name)
        assert float(weight) == n


@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_see_every_token(gated, jit):
    """Two shared experts are one feed-forward layer of twice the width, gated token by token."""
    sizes = dict(d_model=D, n_heads=1, n_kv_heads=1, d_expert=F, n_experts=E)
    c = config("tiny", **sizes, n_shared_experts=2, shared_expert_gate=gated)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(B, T, D)).astype(np.float32)
    shapes = {"gate": (D, 2 * F), "up": (D, 2 * F), "down": (2 * F, D)}
    shared = {name: {"kernel": rng.normal(size=shape)} for name, shape in shapes.items()}
    w = {**_weights(), "shared": shared}
    if gated:
        w["shared_gate_kernel"] = rng.normal(size=(D, 1))
    y, _ = jit(MoE(c).apply)({"params": w}, x, None)
    routed, _ = jit(MoE(config("tiny", **sizes)).apply)({"params": _weights()}, x, None)
    gate = x @ shared["gate"]["kernel"]
    want = (gate / (1 + np.exp(-gate)) * (x @ shared["up"]["kernel"])) @ shared["down"]["kernel"]
    if gated:
        want = want / (1 + np.exp(-x @ w["shared_gate_kernel"]))
    np.testing.assert_allclose(y - routed, want, rtol=1e-3, atol=1e-4)


def test_losses_are_weighed_and_figures_are_not(jit):
    """What is minimised is the cross-entropy, 0.01 of the balance and 0.001 of the router loss."""
    c = config("tiny", vocab_size=64, d_model=16, n_heads=2, n_kv_heads=2, d_ff=16, n_experts=E)
    model = Transformer(c)
    tokens = np.random.default_rng(3).integers(0, 64, (B, T))
    batch = {"tokens": tokens, "targets": tokens[:, ::-1], "weights": np.ones((B, T))}
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape, scale=0.2), nn.unbox(shapes))
    sums = jit(lambda p: cross_entropy(model).loss(p, (), batch, None))(params)
    mean = {name: float(total) / float(weight) for name, (total, weight) in sums.items()}
    assert {"moe_max_load", "moe_entropy", "moe_idle", "moe_dropped"} < set(mean)
    want = mean["nll"] + 0.01 * mean["moe_balance_loss"] + 0.001 * mean["moe_z_loss"]
    assert mean["loss"] == pytest.approx(want, rel=1e-5) and mean["moe_balance_loss"] >= 1

# SPDX-License-Identifier: Apache-2.0
"""Expert routing against a loop over tokens in float64."""

import numpy as np
import pytest

from llm.models.moe import MoE
from llm.models.presets import config

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
    y, aux = jit(MoE(c).apply)({"params": w}, x, real.astype(np.int32))
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
    }
    for name, value in wanted.items():
        total, weight = aux[name]
        np.testing.assert_allclose(total, value, rtol=1e-4, err_msg=name)
        assert float(weight) == n

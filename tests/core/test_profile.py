# SPDX-License-Identifier: Apache-2.0
"""The FLOP arithmetic against brute force, published numbers and a hand-driven clock."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from llm.core import profile

LLAMA_8B = 7_504_924_672  # matmul parameters per token: all 8.03e9 but the embedding table
LLAMA_70B = 69_502_763_008
LAYERS_8B = [profile.AttentionLayer(32, 128, layers=32)]
LAYERS_70B = [profile.AttentionLayer(64, 128, layers=80)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 7, 100])
def test_pairs_equal_a_counted_mask(causal, window):
    lengths = [1, 2, 5, 9]
    counted = 0
    for n in lengths:
        for q, k in itertools.product(range(n), repeat=2):
            near = window is None or abs(q - k) < window
            counted += near and (k <= q or not causal)
    assert profile.attention_pairs(lengths, causal=causal, window=window) == counted


def test_cross_pairs():
    assert profile.cross_attention_pairs([2, 3], [5, 7]) == 31


def test_document_lengths_ignore_padding_and_keep_rows_apart():
    segments = np.array([[1, 1, 2, 0], [1, 2, 2, 2], [0, 0, 0, 0]])
    assert sorted(profile.document_lengths(segments).tolist()) == [1, 1, 2, 3]
    assert profile.document_lengths(np.zeros(4, int)).size == 0
    assert profile.document_lengths(np.array([3, 3, 0])).tolist() == [2]


@pytest.mark.parametrize(
    ("n", "layers", "tokens_per_s", "peak", "published", "causal"),
    [  # tokens/s per chip at length 8192 and the utilisation published with them
        (LLAMA_8B, LAYERS_8B, 7207, 918e12, 45.46, 40.4),
        (LLAMA_70B, LAYERS_70B, 960, 918e12, 50.33, 47.0),
        (LLAMA_8B, LAYERS_8B, 6667, 989e12, 39.0, 34.7),
    ],
)
def test_published_utilisation_is_recomputed(n, layers, tokens_per_s, peak, published, causal):
    length = 8192
    seconds = length / tokens_per_s
    honest = profile.training_flops(n, layers, [length])
    quoted = profile.convention_flops(n, layers, length, tokens=length)
    assert 100 * profile.utilisation(honest, seconds, 1, peak) == pytest.approx(causal, abs=0.06)
    assert 100 * profile.utilisation(quoted, seconds, 1, peak) == pytest.approx(published, abs=0.1)


@pytest.mark.parametrize(
    ("length", "documents", "inflation"),
    [(2048, 1, 3.5), (8192, 1, 12.5), (32768, 1, 36), (131072, 1, 70), (8192, 8, 26)],
)
def test_how_much_the_convention_inflates(length, documents, inflation):
    lengths = [length // documents] * documents
    ratio = profile.convention_flops(LLAMA_8B, LAYERS_8B, length, length) / profile.training_flops(
        LLAMA_8B, LAYERS_8B, lengths
    )
    assert 100 * (ratio - 1) == pytest.approx(inflation, abs=0.5)


def test_flops_of_a_small_step_by_hand():
    layers = [profile.AttentionLayer(2, 4), profile.AttentionLayer(2, 4, window=2)]
    pairs = (3 + 6) + (3 + 5)  # documents of 2 and 3 tokens, then the same with a window of 2
    expected = 3 * (2 * 100 * 5 + 4 * 8 * pairs)
    assert profile.training_flops(100, layers, [2, 3]) == expected
    frozen = profile.training_flops(0, layers, [2, 3], n_frozen=100)
    assert expected - frozen == 2 * 100 * 5


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", None),  # no bfloat16
        ("cpu", None),
        ("TPU v99", None),
    ],
)
def test_device_kinds(kind, peak):
    assert profile.peak_flops(kind) == peak


def test_memory_of_a_kind():
    assert profile.hbm_bytes("TPU v5 lite") == 15.75 * 2**30
    assert profile.hbm_bytes("cpu") is None
    assert profile.utilisation(1e15, 1.0, 8, None) is None


class Clock:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_timer_waits_leaves_out_compilation_and_pauses():
    clock, waited = Clock(), []

    def wait(outputs):
        waited.append(outputs)
        clock.now += 0.5  # the devices finish half a second after the host asks

    timer = profile.StepTimer(group=4, history=3, clock=clock, wait=wait)
    clock.now += 30.0  # compilation
    timer.step("first")
    assert waited == ["first"]
    assert timer.metrics() == {}
    for step in range(9):
        with timer.data():
            clock.now += 0.25
        clock.now += 0.75
        timer.step(step)
        if step == 5:
            with timer.pause(step):
                clock.now += 100.0  # an evaluation in the middle of a group: closes it first
    assert waited == ["first", 3, 5]
    assert timer.steps == 6
    assert timer.seconds_per_step() == pytest.approx((4.5 / 4 + 2.5 / 2) / 2)
    metrics = timer.metrics()
    assert metrics["perf/data_wait"] == pytest.approx((1 / 4.5 + 0.5 / 2.5) / 2)
    expected = {"compile": 30.5, "steps": 7.0 - 1.5, "data": 9 * 0.25, "other": 100.0}
    assert timer.spent == pytest.approx(expected)
    timer.step("last")
    assert waited[-1] == "last"
    assert timer.steps == 10


def test_timer_takes_the_median_and_can_be_closed_early():
    clock = Clock()
    timer = profile.StepTimer(group=2, history=5, clock=clock, wait=lambda _: None)
    timer.step(0)
    timer.close(0)  # nothing open: no effect
    for seconds in (1.0, 1.0, 50.0, 50.0, 2.0, 2.0, 1.0):
        clock.now += seconds
        timer.step(0)
    assert timer.seconds_per_step() == 2.0
    timer.close(0)
    assert timer.seconds_per_step() == 1.5
    assert timer.steps == 7


def test_timer_waits_for_real_arrays():
    import jax.numpy as jnp

    timer = profile.StepTimer(group=1)
    timer.step(jnp.ones(3))
    timer.step({"loss": jnp.ones(3) * 2})
    assert timer.seconds_per_step() > 0


def test_environment_describes_this_process(monkeypatch):
    import jax

    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--config.x.api_key=abc", "--config.n=1"])

    found = profile.environment(n_params=7)
    assert found["n_params"] == 7
    assert found["command"] == "pretrain.py --config.x.api_key=*** --config.n=1"
    assert found["devices"] == jax.device_count()
    assert found["versions"]["jax"] == jax.__version__


def test_arithmetic_needs_no_jax():
    code = "import sys, llm.core.profile; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

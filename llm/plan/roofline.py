# SPDX-License-Identifier: Apache-2.0
"""The fastest that a step could be: arithmetic, memory traffic and network, each at its peak.

The three overlap at best, so the largest is a lower bound of the step time and, with the model's
FLOPs, an upper bound of MFU. Real runs reach a part of it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from llm.core.profile import Device
from llm.models.config import TransformerConfig
from llm.plan.memory import WIDTH, Work


class Flops(NamedTuple):
    """FLOPs of one step over all devices.

    Attributes:
        model: what the data ask for (the numerator of MFU).
        executed: with recomputation.
    """

    model: float
    executed: float


def traffic(c: TransformerConfig, work: Work, state_bytes: float) -> float:
    """Return the bytes that one device moves to and from its memory in a step.

    Weights are read once per pass and microbatch, parameters and optimizer state are read and
    written once, and a layer's values are written once and read once per pass.
    """
    width = WIDTH[c.dtype]
    passes = 4 if c.remat == "full" else 3
    weights = c.n_layers * work.layer_params / work.tensor + 2 * c.vocab_size * c.d_model
    values = 6 * c.d_model + (c.n_heads + 2 * c.n_kv_heads) * c.head_dim / work.tensor
    values += 3 * c.d_ff / work.tensor
    layers = 2 * c.n_layers * work.tokens * values
    logits = 2 * work.tokens * c.vocab_size / work.tensor * 2
    return work.microbatches * passes * width * (weights + layers + logits) + 2 * state_bytes


def network(
    c: TransformerConfig, work: Work, mesh: Mapping[str, int], n_params: float
) -> dict[str, float]:
    """Return the bytes that one device sends in a step, by purpose.

    Ring algorithms: gathering or scattering n bytes over p devices sends n (p - 1) / p; reducing
    to all, twice that.
    """
    width, stored = WIDTH[c.dtype], WIDTH[c.param_dtype]

    def ring(parts: int) -> float:
        return (parts - 1) / parts

    split = n_params / (mesh["tensor"] * mesh["expert"] * mesh["stage"])
    sent = {}
    if mesh["fsdp"] > 1:
        gathers = 2 * split * width
        sent["fsdp"] = work.microbatches * ring(mesh["fsdp"]) * (gathers + split * stored)
    if mesh["data"] > 1:
        sent["data"] = 2 * ring(mesh["data"]) * split / mesh["fsdp"] * stored
    activation = work.tokens * c.d_model * width * work.microbatches * c.n_layers
    if mesh["tensor"] > 1:
        passes = 3 if c.remat == "full" else 2
        sent["tensor"] = passes * 2 * 2 * ring(mesh["tensor"]) * activation
    if mesh["expert"] > 1:
        sent["expert"] = 3 * 2 * ring(mesh["expert"]) * c.experts_per_token * activation
    if mesh["context"] > 1:
        keys = 2 * c.n_kv_heads * c.head_dim / c.d_model / work.tensor
        sent["context"] = 3 * (mesh["context"] - 1) * keys * activation
    if mesh["stage"] > 1:
        sent["stage"] = 2 * activation / c.n_layers
    return sent


def step_time(
    flops: Flops,
    bytes_moved: float,
    sent: Mapping[str, float],
    device: Device | None,
    link: float | None,
    n_devices: int,
    tokens: float,
) -> dict[str, float | str] | None:
    """Return the bound on step time with its three sides, or None for a device without a peak."""
    if device is None or not device.peak_flops or not link:
        return None
    sides = {
        "arithmetic": flops.executed / (n_devices * device.peak_flops),
        "memory": bytes_moved / device.hbm_bandwidth,
        "network": sum(sent.values()) / link,
    }
    bound = max(sides, key=lambda side: sides[side])
    seconds = sides[bound]
    return {
        **{f"{name}_seconds": value for name, value in sides.items()},
        "step_seconds": seconds,
        "bound": bound,
        "tokens_per_s": tokens / seconds,
        "mfu": flops.model / (seconds * n_devices * device.peak_flops),
    }

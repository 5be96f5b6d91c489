# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic a step needs, how fast devices could do it, and how long it really took.

Model FLOPs are counted from what the data ask for, not from what a program happens to execute:

    F = 3 * [2 * N * T + 4 * sum over layers of (heads * head_dim * A)]

N are the matmul parameters that a token passes (LM head included, embedding lookup not), T the
real tokens (no padding), A the unmasked (query, key) pairs of the real documents. Frozen weights
need no gradient of their own: two passes instead of three. Plain numbers in and out; JAX is
imported only to wait for a result.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

GIB = 2**30
GB = 10**9
TERA = 10**12


class Device(NamedTuple):
    """What one JAX device can do; bandwidths in bytes per second.

    Attributes:
        name: how people call it.
        peak_flops: dense bfloat16 FLOP/s (no sparsity).
        hbm_bytes: memory a program can use.
        hbm_bandwidth: memory bandwidth.
        link_bandwidth: sum over the links to its neighbours, one direction.
    """

    name: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float


# One row per JAX device, which is a core on TPU v2, v3 and 7x and a chip on the others. TPU memory
# is what the compiler lets a program use, a little under the nominal size. Sources: the vendors'
# data sheets; the TPU compiler's own limit for memory.
DEVICES: dict[str, Device] = {
    "v2": Device("TPU v2", 22.5 * TERA, 8 * GIB, 350 * GB, 124 * GB),
    "v3": Device("TPU v3", 61.5 * TERA, 16 * GIB, 450 * GB, 164 * GB),
    "v4": Device("TPU v4", 275 * TERA, 30.75 * GIB, 1228 * GB, 270 * GB),
    "v5e": Device("TPU v5e", 197 * TERA, 15.75 * GIB, 819 * GB, 180 * GB),
    "v5p": Device("TPU v5p", 459 * TERA, 95.74 * GIB, 2765 * GB, 540 * GB),
    "v6e": Device("TPU v6e", 918 * TERA, 31.25 * GIB, 1640 * GB, 360 * GB),
    "tpu7x": Device("TPU7x", 1153.5 * TERA, 94.75 * GIB, 3690 * GB, 540 * GB),
    "v100": Device("V100", 0.0, 16 * GIB, 900 * GB, 150 * GB),
    "t4": Device("T4", 0.0, 15 * GIB, 320 * GB, 16 * GB),
    "l4": Device("L4", 121 * TERA, 22 * GIB, 300 * GB, 32 * GB),
    "l40s": Device("L40S", 362 * TERA, 44 * GIB, 864 * GB, 32 * GB),
    "a10g": Device("A10G", 70 * TERA, 22 * GIB, 600 * GB, 32 * GB),
    "a100-40g": Device("A100 40GB", 312 * TERA, 39 * GIB, 1555 * GB, 300 * GB),
    "a100": Device("A100 80GB", 312 * TERA, 79 * GIB, 2039 * GB, 300 * GB),
    "h100-pcie": Device("H100 PCIe", 756 * TERA, 79 * GIB, 2039 * GB, 64 * GB),
    "h100-nvl": Device("H100 NVL", 835 * TERA, 93 * GIB, 3938 * GB, 300 * GB),
    "h100": Device("H100 SXM", 989.4 * TERA, 79 * GIB, 3352 * GB, 450 * GB),
    "h200": Device("H200", 989.4 * TERA, 139 * GIB, 4800 * GB, 450 * GB),
    "b200": Device("B200", 2250 * TERA, 178 * GIB, 8000 * GB, 900 * GB),
}

# `jax.Device.device_kind` -> row, first match wins; compared in lower case.
_KINDS: tuple[tuple[str, str], ...] = (
    ("tpu v2", "v2"),
    ("tpu v3", "v3"),
    ("tpu v4 lite", ""),
    ("tpu v4", "v4"),
    ("tpu v5 lite", "v5e"),
    ("tpu v5e", "v5e"),
    ("tpu v5", "v5p"),
    ("tpu v6", "v6e"),
    ("tpu7x", "tpu7x"),
    ("tpu v7", "tpu7x"),
    ("v100", "v100"),
    ("tesla t4", "t4"),
    ("l40s", "l40s"),
    ("nvidia l4", "l4"),
    ("a10g", "a10g"),
    ("a100-sxm4-40gb", "a100-40g"),
    ("a100-pcie-40gb", "a100-40g"),
    ("a100", "a100"),
    ("h100 pcie", "h100-pcie"),
    ("h100 nvl", "h100-nvl"),
    ("h100", "h100"),
    ("gh200", ""),
    ("gb200", ""),
    ("h200", "h200"),
    ("b200", "b200"),
)


class AttentionLayer(NamedTuple):
    """The shape of one attention layer, or of `layers` equal ones.

    Attributes:
        heads: query heads.
        head_dim: size of a head.
        window: keys a query may see, itself included; None for all.
        causal: False where attention looks both ways.
        layers: how many such layers.
    """

    heads: int
    head_dim: int
    window: int | None = None
    causal: bool = True
    layers: int = 1


def device(kind: str) -> Device | None:
    """Look up a `jax.Device.device_kind`, or None when the table does not know it."""
    lowered = kind.lower()
    for fragment, name in _KINDS:
        if fragment in lowered:
            return DEVICES.get(name)
    return None


def peak_flops(kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device kind; None if unknown or it has no bfloat16."""
    found = device(kind)
    return (found.peak_flops or None) if found else None


def hbm_bytes(kind: str) -> float | None:
    """Return the memory of a device kind that a program can use, or None if unknown."""
    found = device(kind)
    return found.hbm_bytes if found else None


def document_lengths(segments: np.ndarray) -> np.ndarray:
    """Return the length of every document in packed rows.

    Args:
        segments: [B, T] (or [T]) integers, 0 = padding, a document per other number and row.

    Returns:
        int64 [documents], in no particular order.
    """
    rows = np.atleast_2d(np.asarray(segments)).astype(np.int64)
    width = int(rows.max(initial=0)) + 1
    keys = rows + width * np.arange(rows.shape[0], dtype=np.int64)[:, None]
    counts = np.bincount(keys.ravel(), minlength=width * rows.shape[0]).reshape(-1, width)
    documents = counts[:, 1:]
    return documents[documents > 0]


def attention_pairs(
    lengths: Sequence[int] | np.ndarray, *, causal: bool = True, window: int | None = None
) -> int:
    """Count the (query, key) pairs that a mask leaves in documents of these lengths.

    Args:
        lengths: document lengths.
        causal: keys up to the query only; else both sides.
        window: keys seen on a side, the query itself included; None for no limit.
    """
    n = np.asarray(lengths, dtype=np.int64)
    w = n if window is None else np.minimum(n, window)
    one_side = w * (w + 1) // 2 + (n - w) * w
    pairs = one_side if causal else 2 * one_side - n
    return int(pairs.sum())


def cross_attention_pairs(
    queries: Sequence[int] | np.ndarray, keys: Sequence[int] | np.ndarray
) -> int:
    """Count the pairs of cross-attention: every query of a document sees all of its keys."""
    return int(np.sum(np.asarray(queries, np.int64) * np.asarray(keys, np.int64)))


def attention_flops(layers: Iterable[AttentionLayer], lengths: Sequence[int] | np.ndarray) -> float:
    """Return the forward FLOPs of attention scores and values over documents of these lengths."""
    total = 0.0
    for layer in layers:
        pairs = attention_pairs(lengths, causal=layer.causal, window=layer.window)
        total += 4.0 * layer.layers * layer.heads * layer.head_dim * pairs
    return total


def training_flops(
    n_active: float,
    layers: Iterable[AttentionLayer],
    lengths: Sequence[int] | np.ndarray,
    *,
    n_frozen: float = 0.0,
) -> float:
    """Return the model FLOPs of one training step over these documents.

    Args:
        n_active: trained matmul parameters that each token passes, LM head included.
        layers: attention layers.
        lengths: real document lengths; padding is not work.
        n_frozen: matmul parameters passed but not trained (two passes).
    """
    tokens = float(np.asarray(lengths, dtype=np.int64).sum())
    weights = 2.0 * tokens * (3.0 * n_active + 2.0 * n_frozen)
    return weights + 3.0 * attention_flops(layers, lengths)


def convention_flops(
    n_params: float, layers: Iterable[AttentionLayer], length: int, tokens: float = 1.0
) -> float:
    """Return "6N + 12LHQT": training FLOPs as most codebases quote them, no mask considered.

    Args:
        n_params: parameters that count as N.
        layers: attention layers (their masks and windows are ignored, as the convention does).
        length: row length T.
        tokens: positions, padding included.
    """
    attention = sum(layer.layers * layer.heads * layer.head_dim for layer in layers)
    return tokens * (6.0 * n_params + 12.0 * attention * length)


def utilisation(flops: float, seconds: float, n_devices: int, peak: float | None) -> float | None:
    """Return achieved over peak FLOP/s (MFU for model FLOPs), or None when there is no peak."""
    if not peak or seconds <= 0:
        return None
    return flops / (seconds * n_devices * peak)


def environment(**more: Any) -> dict[str, Any]:
    """Describe hardware, software and command of this process, for a run's `environment.json`.

    Args:
        more: further entries, such as n_params.
    """
    import importlib.metadata
    import platform
    import sys

    import jax

    from llm.core.redact import redact

    packages = ("jax-llm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        **more,
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "platform": platform.platform(terse=True),
        "command": redact(" ".join(sys.argv)),
        "versions": {"python": platform.python_version(), **versions},
    }


def _wait(outputs: Any) -> None:
    """Block until the devices have made the outputs."""
    import jax

    jax.block_until_ready(outputs)


class StepTimer:
    """Measure the step time of a loop that dispatches ahead of its devices.

    Steps are timed in groups: the clock is read at a group's end, after waiting for its last
    outputs, so that asynchronous dispatch cannot make a step look faster than it was. The first
    step (compilation) is left out. Time in `pause` (evaluation, checkpoints, samples) is no step
    time; time in `data` is, and is also shown on its own. `spent` tells where all the time went:
    seconds by "compile", "steps", "data" and whatever the pauses were called.

    Args:
        group: steps between two waits.
        history: groups whose median is the step time.
        clock: returns seconds.
        wait: blocks until its argument is computed.
    """

    def __init__(
        self,
        group: int = 10,
        history: int = 10,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[Any], None] = _wait,
    ):
        self._group, self._history, self._clock, self._wait = group, history, clock, wait
        self._begin = clock()
        self._mark: float | None = None  # start of the open group; None before the first step
        self._open = 0
        self._paused = self._data = 0.0
        self._seconds: list[float] = []
        self._data_share: list[float] = []
        self._steps = 0
        self.spent: dict[str, float] = {"compile": 0.0, "steps": 0.0, "data": 0.0}

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Account the body as waiting for data."""
        start = self._clock()
        yield
        waited = self._clock() - start
        self._data += waited
        self.spent["data"] += waited

    @contextlib.contextmanager
    def pause(self, outputs: Any, kind: str = "other") -> Iterator[None]:
        """Leave the body out of the step time; account it under `kind`.

        The open group is closed first, on the last step's outputs: else its steps would finish
        unseen during the pause and look faster than they were.
        """
        self.close(outputs)
        start = self._clock()
        try:
            yield
        finally:
            paused = self._clock() - start
            self._paused += paused
            self.spent[kind] = self.spent.get(kind, 0.0) + paused

    def step(self, outputs: Any) -> None:
        """Note that a step was dispatched; wait for it at the end of a group."""
        if self._mark is None:
            self._wait(outputs)
            before = self._paused + self._data
            self.spent["compile"] += max(self._clock() - self._begin - before, 0.0)
            self._reset()
            return
        self._open += 1
        if self._open >= self._group:
            self.close(outputs)

    def close(self, outputs: Any) -> None:
        """End the open group now: wait for its outputs and record the time per step."""
        if self._mark is None or not self._open:
            return
        self._wait(outputs)
        spent = max(self._clock() - self._mark - self._paused, 0.0)
        self._seconds.append(spent / self._open)
        self._data_share.append(self._data / spent if spent > 0 else 0.0)
        del self._seconds[: -self._history], self._data_share[: -self._history]
        self.spent["steps"] += max(spent - self._data, 0.0)
        self._steps += self._open
        self._reset()

    def _reset(self) -> None:
        self._mark, self._open, self._paused, self._data = self._clock(), 0, 0.0, 0.0

    @property
    def steps(self) -> int:
        """Steps measured so far."""
        return self._steps

    def seconds_per_step(self) -> float | None:
        """Return the median seconds per step over the last groups, or None before the first."""
        return statistics.median(self._seconds) if self._seconds else None

    def metrics(self) -> dict[str, float]:
        """Return step seconds and the share of it that waited for data."""
        seconds = self.seconds_per_step()
        if seconds is None:
            return {}
        return {
            "perf/step_seconds": seconds,
            "perf/data_wait": statistics.median(self._data_share),
        }

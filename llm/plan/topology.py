# SPDX-License-Identifier: Apache-2.0
"""Machines by name: "v5p:2x2x4", "v6e:4x4", "h100:8", "cpu:8"."""

import difflib
import math
import os
from typing import Any, NamedTuple

from llm.core.profile import DEVICES, Device
from llm.errors import ConfigError

# TPU generation -> the shapes of slices that can be had (chips along each axis of the torus).
_TORUS_3D = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
)
_TORUS_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SLICES = {
    "v4": _TORUS_3D,
    "v5p": (*_TORUS_3D, "16x16x24"),
    "tpu7x": _TORUS_3D,
    "v5e": _TORUS_2D,
    "v6e": _TORUS_2D,
}
LARGEST = {"v4": 4096, "v5p": 8960, "tpu7x": 9216, "v5e": 256, "v6e": 256}  # chips of one pod
DEVICES_PER_CHIP = {"tpu7x": 2}  # JAX shows a chip's cores as devices there
GPUS_PER_NODE = 8
NODE_BANDWIDTH = 50e9  # bytes/s per GPU between nodes: one 400 Gb/s adapter each


class Topology(NamedTuple):
    """A machine.

    Attributes:
        text: as the user wrote it.
        kind: key of `profile.DEVICES`, or "cpu".
        platform: "tpu", "gpu" or "cpu".
        shape: chips along each axis.
        device: what one JAX device can do; None on a CPU.
        devices_per_chip: JAX devices in a chip.
    """

    text: str
    kind: str
    platform: str
    shape: tuple[int, ...]
    device: Device | None
    devices_per_chip: int = 1

    @property
    def n_chips(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def n_devices(self) -> int:
        """JAX devices of one slice."""
        return self.n_chips * self.devices_per_chip


def parse(text: str) -> Topology:
    """Read a topology.

    Raises:
        ConfigError: an unknown kind or an impossible shape; names the nearest that exists.
    """
    kind, _, dimensions = text.strip().lower().partition(":")
    known = [*SLICES, "cpu", *(k for k in DEVICES if k not in SLICES)]
    if not text:
        raise ConfigError("No topology is given.", "Add for example --topology=v5p:2x2x4.")
    if kind not in known:
        raise ConfigError(f"Unknown topology {text!r}.{_guess(kind, known)}", _usage(known))
    parts = dimensions.split("x") if dimensions else []
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"Topology {text!r} has no shape.", f"For example {kind}:{_first(kind)}.")
    shape = tuple(int(part) for part in parts)
    if kind in SLICES:
        _check_slice(text, kind, shape)
        return Topology(text, kind, "tpu", shape, DEVICES[kind], DEVICES_PER_CHIP.get(kind, 1))
    if len(shape) != 1:
        raise ConfigError(f"{kind} has no torus: {text!r}.", f"Write {kind}:{math.prod(shape)}.")
    platform = "cpu" if kind == "cpu" else "gpu"
    return Topology(text, kind, platform, shape, DEVICES.get(kind))


def _guess(kind: str, known: list[str]) -> str:
    """Answer the two usual mistakes: a typing error, and names that count cores."""
    generation, _, count = kind.partition("-")
    generation = {"v5litepod": "v5e", "v5lite": "v5e"}.get(generation, generation)
    if generation in SLICES and count.isdigit():
        chips = int(count) // 2 if generation in ("v4", "v5p") else int(count)
        return f" Did you mean {generation}:{nearest_slice(generation, max(chips, 1))}?"
    close = difflib.get_close_matches(kind, known, n=1, cutoff=0.4)
    return f" Did you mean {close[0]}:{_first(close[0])}?" if close else ""


def _first(kind: str) -> str:
    return SLICES[kind][3] if kind in SLICES else "8"


def _usage(known: list[str]) -> str:
    return f"Write kind:shape, such as v5p:2x2x4, v6e:4x4, h100:8. Kinds: {', '.join(known)}."


def nearest_slice(kind: str, chips: int) -> str:
    """Return the shape of a real slice whose number of chips is nearest on a log scale."""
    return min(
        SLICES[kind],
        key=lambda s: abs(math.log(math.prod(map(int, s.split("x"))) / chips)),
    )


def _check_slice(text: str, kind: str, shape: tuple[int, ...]) -> None:
    chips = math.prod(shape)
    axes = SLICES[kind][0].count("x") + 1
    host = (2, 2, 1)[:axes]
    whole = len(shape) == axes and all(n % h == 0 for n, h in zip(shape, host, strict=True))
    if (whole or (axes == 2 and chips == 1 and len(shape) == 2)) and chips <= LARGEST[kind]:
        return
    why = (
        f"a pod has {LARGEST[kind]} chips at most"
        if chips > LARGEST[kind]
        else f"shapes have {axes} axes, and hosts hold {'x'.join(map(str, host))} chips"
    )
    raise ConfigError(
        f"{kind} has no slice of shape {text.partition(':')[2]}: {why}.",
        f"The nearest is {kind}:{nearest_slice(kind, chips)}.",
    )


def memory(topology: Topology) -> float | None:
    """Return the bytes that programs can use on one chip (a CPU device's share of this machine)."""
    if topology.device is not None:
        return topology.device.hbm_bytes * topology.devices_per_chip
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / topology.n_devices


def link_bandwidth(topology: Topology) -> float | None:
    """Return the bytes per second that one device can send to the others."""
    if topology.device is None:
        return None
    if topology.platform == "gpu" and topology.n_devices > GPUS_PER_NODE:
        return NODE_BANDWIDTH
    return topology.device.link_bandwidth


def wraps(topology: Topology) -> tuple[bool, ...]:
    """Return along which axes the ends of a TPU slice are linked: all axes of whole cubes of four
    chips a side, and in flat pods those of a pod's full length."""
    if len(topology.shape) == 3:
        return (all(n % 4 == 0 for n in topology.shape),) * 3
    return tuple(n == 16 for n in topology.shape)


def described_devices(topology: Topology, slices: int = 1) -> list[Any]:
    """Return the devices of a TPU that is not there, as its compiler describes them.

    Raises:
        ConfigError: the topology is no TPU, or libtpu is not installed.
    """
    if topology.platform != "tpu":
        raise ConfigError(
            f"--compile needs a TPU topology, not {topology.text}.",
            "Leave --compile away: the analytic plan works for every topology.",
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this need not be a TPU machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # a compiler alone holds no chip
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.kind == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as on real v4 hosts
    if topology.n_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # three, also for a torus of two
    if any(wrapped := wraps(topology)):
        options["wrap"] = (*wrapped, False)[:3]
    name = f"{topology.kind}:{'x'.join(map(str, topology.shape))}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        if "libtpu.so" in str(error) or "not installed" in str(error):
            raise ConfigError(
                "The TPU compiler is not installed.", "pip install 'jax-llm[tpu]'"
            ) from error
        raise ConfigError(
            f"The TPU compiler does not know {name}: {str(error).splitlines()[0][:200]}",
            f"Try {topology.kind}:{nearest_slice(topology.kind, topology.n_chips)}.",
        ) from error
    return list(found.devices)

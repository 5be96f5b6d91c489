# SPDX-License-Identifier: Apache-2.0
"""Machines by name, and what is said of names that are none."""

import pytest

from llm.core.profile import GIB
from llm.errors import ConfigError
from llm.plan import topology


@pytest.mark.parametrize(
    ("text", "platform", "chips", "devices"),
    [
        ("v5p:2x2x4", "tpu", 16, 16),
        ("v5e:4x4", "tpu", 16, 16),
        ("v6e:1x1", "tpu", 1, 1),
        ("V6E:2x4", "tpu", 8, 8),
        ("tpu7x:2x2x2", "tpu", 8, 16),
        ("v4:4x4x8", "tpu", 128, 128),
        ("h100:8", "gpu", 8, 8),
        ("cpu:8", "cpu", 8, 8),
    ],
)
def test_known_machines(text, platform, chips, devices):
    found = topology.parse(text)
    assert (found.platform, found.n_chips, found.n_devices) == (platform, chips, devices)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "--topology=v5p:2x2x4"),
        ("v5x:4x4", "Did you mean v5"),
        ("v5p-32", "Did you mean v5p:2x2x4?"),  # that name counts cores: 16 chips
        ("v5litepod-16", "Did you mean v5e:4x4?"),
        ("v5p", "v5p:2x4x4"),
        ("v5p:2x2xq", "v5p:2x4x4"),
        ("v5p:4x4", "The nearest is v5p:2x2x4"),
        ("v6e:3x5", "The nearest is v6e:4x4"),
        ("v5e:32x16", "a pod has 256 chips at most"),
        ("h100:2x4", "h100:8"),
        ("abacus:8", "Kinds:"),
    ],
)
def test_unknown_machines_get_the_nearest(text, hint):
    with pytest.raises(ConfigError) as refused:
        topology.parse(text)
    assert hint in str(refused.value)


def test_memory_and_network_of_a_machine():
    assert topology.memory(topology.parse("v5e:4x4")) == 15.75 * GIB
    assert topology.memory(topology.parse("tpu7x:2x2x1")) == 2 * 94.75 * GIB  # two cores a chip
    assert topology.memory(topology.parse("cpu:4")) > 0
    inside, across = (topology.link_bandwidth(topology.parse(t)) for t in ("h100:8", "h100:16"))
    assert inside > across > 0
    assert topology.link_bandwidth(topology.parse("cpu:4")) is None


def test_only_a_tpu_can_be_described():
    with pytest.raises(ConfigError, match="needs a TPU topology"):
        topology.described_devices(topology.parse("h100:8"))


def test_every_listed_slice_is_accepted():
    for kind, shapes in topology.SLICES.items():
        for shape in shapes:
            assert topology.parse(f"{kind}:{shape}").text == f"{kind}:{shape}"


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("v5p:2x2x4", (False, False, False)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5e:4x4", (False, False)),
        ("v6e:8x16", (False, True)),
        ("v5e:16x16", (True, True)),
    ],
)
def test_which_axes_are_closed_to_rings(text, linked):
    assert topology.wraps(topology.parse(text)) == linked

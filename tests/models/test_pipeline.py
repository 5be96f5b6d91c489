# SPDX-License-Identifier: Apache-2.0
"""How a batch goes through pipeline stages: turns, bubble, refusals."""

import pytest

from llm.core import sharding
from llm.errors import ConfigError
from llm.models import pipeline


def layout(choices=None, **mesh):
    return sharding.make_layout(sharding.make_mesh(mesh), choices)


def simulate(plan):
    """Count by hand: every stage takes what is ready, one microbatch a turn, in order."""
    done, turn = {}, 0
    order = [(r, m) for r in range(plan.repeats) for m in range(plan.microbatches)]
    while len(done) < plan.stages * len(order):
        for stage in range(plan.stages):
            for repeat, micro in order:
                before = (
                    (stage - 1, repeat, micro) if stage else (plan.stages - 1, repeat - 1, micro)
                )
                first = stage == 0 and repeat == 0
                ready = first or done.get(before, turn) < turn
                if (stage, repeat, micro) not in done and ready:
                    done[stage, repeat, micro] = turn
                    break
        turn += 1
    return turn


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 8, 1), (4, 4, 3), (3, 5, 2)])
def test_turns_and_bubble(shape):
    plan = pipeline.Schedule(*shape)
    assert plan.turns == simulate(plan)
    S, M, R = shape
    assert plan.bubble == pytest.approx((S - 1) / (R * M + S - 1))


def test_microbatches_are_the_most_up_to_four_per_stage_or_as_asked():
    assert pipeline.schedule(layout(data=4, stage=2), 4, 64) == (2, 8, 1)
    assert pipeline.schedule(layout(data=4, stage=2), 4, 24) == (2, 6, 1)
    choices = {"microbatches": 2, "repeats": 2}
    assert pipeline.schedule(layout(choices, data=4, stage=2), 4, 64) == (2, 2, 2)
    assert pipeline.schedule(layout(data=8), 4, 64) is None


@pytest.mark.parametrize(
    ("choices", "layers", "batch", "says"),
    [
        ({}, 5, 64, "5 layers do not divide into mesh.stage=2 x sharding.repeats=1.*\n.*are 4"),
        ({"repeats": 2}, 6, 64, r"mesh.stage=2 x sharding.repeats=2"),
        ({"microbatches": 3}, 4, 64, "3 microbatches.*\n.*can be 2, 4, 8, 16"),
        ({}, 4, 4, "2 microbatches for mesh.stage=2.*\n.*a multiple of 8"),
    ],
)
def test_refusals(choices, layers, batch, says):
    with pytest.raises(ConfigError, match=says):
        pipeline.schedule(layout(choices, data=4, stage=2), layers, batch)

# SPDX-License-Identifier: Apache-2.0
"""Compile the real training step for a TPU that is not there, and read what the compiler knows."""

import collections
import re
from typing import Any, NamedTuple

import jax

from llm.core import sharding
from llm.plan.assembly import Assembly
from llm.train.step import Frozen, make_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class OutOfMemoryError(Exception):
    """The compiler found no way to place the program in a device's memory."""


class Compiled(NamedTuple):
    """What the compiler says of one device's program.

    Attributes:
        arguments, outputs, aliased, temp: bytes; donated arguments are reused for outputs.
        flops, bytes_accessed: its cost analysis, which counts the body of a scanned layer once and
            is blind to Pallas kernels.
        collectives: operation -> how often it stands in the program.
        kernels: Pallas kernels in the program.
    """

    arguments: int
    outputs: int
    aliased: int
    temp: int
    flops: float
    bytes_accessed: float
    collectives: dict[str, int]
    kernels: int

    @property
    def total(self) -> int:
        """Bytes held at once: arguments, temporaries and outputs that reuse no argument."""
        return self.arguments + self.temp + self.outputs - self.aliased


def lower(made: Assembly) -> Any:
    """Lower the jitted update with the shapes and shardings of a run."""
    mesh = made.layout.mesh
    update = make_step(
        made.objective,
        made.optimizer,
        microbatches=made.settings.microbatches,
        ema_decay=made.settings.ema_decay,
        place=made.where.update,
        offloaded=made.layout.choices.offload,
    )
    state = _placed(made.where.state_shapes, made.where.state)
    trained, rest = made.bones.split(made.bones.shapes)
    reference = jax.eval_shape(made.objective.init, trained)
    frozen = Frozen(
        _placed(rest, made.where.frozen.params), _placed(reference, made.where.frozen.objective)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))
    step = jax.jit(update, donate_argnums=0, out_shardings=(made.where.state, None))
    with sharding.use_layout(made.layout):
        return step.lower(state, frozen, made.batch, key)


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, shardings
    )


def compile_step(made: Assembly) -> Compiled:
    """Compile the update.

    Raises:
        OutOfMemoryError: it does not fit; the text is the compiler's own.
    """
    try:
        compiled = lower(made).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
        said = first.partition("RESOURCE_EXHAUSTED")[2].lstrip(": ")
        raise OutOfMemoryError(said[:300]) from error
    memory, cost, program = (
        compiled.memory_analysis(),
        compiled.cost_analysis(),
        compiled.as_text(),
    )
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temp=memory.temp_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        collectives=count_collectives(program),
        kernels=program.count("tpu_custom_call"),
    )


def count_collectives(program: str) -> dict[str, int]:
    """Count the collective operations of an optimised HLO program (a started one once)."""
    found = re.findall(rf"\b({'|'.join(COLLECTIVES)})(?:-start)?\(", program)
    return dict(sorted(collections.Counter(found).items()))

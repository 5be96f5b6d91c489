# SPDX-License-Identifier: Apache-2.0
"""Compile the real training step for a TPU that is not there, and read what the compiler knows."""

import collections
import math
import re
from typing import Any, NamedTuple

import jax

from llm.core import sharding, trees
from llm.plan.assembly import Assembly
from llm.train.step import Frozen, make_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class OutOfMemoryError(Exception):
    """The compiler found no way to place the program in a device's memory."""


class Compiled(NamedTuple):
    """What the compiler says of one device's program.

    Attributes:
        arguments: bytes of what the program is given; donated arguments are reused for results.
        total: bytes held at once at most, arguments included.
        allocated: bytes of temporaries as its buffers are laid out. Older compilers add up buffers
            there that never exist together: programs for which arguments and these exceed the
            memory are compiled all the same, so that `total` decides what fits.
        flops, bytes_accessed: its cost analysis, which counts the body of a scanned layer once and
            is blind to Pallas kernels.
        collectives: what it sends.
        kernels: Pallas kernels in the program.
    """

    arguments: int
    total: int
    allocated: int
    flops: float
    bytes_accessed: float
    collectives: "Collectives"
    kernels: int

    @property
    def temp(self) -> int:
        """Bytes held at once besides the arguments."""
        return self.total - self.arguments


class Collectives(NamedTuple):
    """Collective operations of one program; the body of a loop counts once.

    Attributes:
        counts: operation -> how often it stands in the program.
        sizes: operation -> bytes of its results.
        gathered: dimensions of the arrays that gathers, and sums over devices, give.
    """

    counts: dict[str, int]
    sizes: dict[str, int]
    gathered: frozenset[tuple[int, ...]]


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
    return read(compiled)


def read(compiled: Any) -> Compiled:
    """Read what the compiler says of a program that it made."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    program = compiled.as_text()
    held = memory.argument_size_in_bytes
    apart = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        arguments=held,
        total=max(memory.peak_memory_in_bytes, held + apart),
        allocated=memory.temp_size_in_bytes,
        flops=float(cost.get("flops", 0.0)),
        bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        collectives=collectives(program),
        kernels=program.count("tpu_custom_call"),
    )


_LINE = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d+)\w*\[([\d,]*)\]")


def collectives(program: str) -> Collectives:
    """Read the collective operations of an optimised HLO program (a started one counts once)."""
    count: collections.Counter[str] = collections.Counter()
    size: collections.Counter[str] = collections.Counter()
    gathered: set[tuple[int, ...]] = set()
    for given, operation, started in _LINE.findall(program):
        arrays = [
            (tuple(int(n) for n in dimensions.split(",")), int(bits))
            for _, bits, dimensions in _ARRAY.findall(given)
            if dimensions  # others are counters
        ]
        if started and operation != "all-reduce":  # gives its operands as well, first
            arrays = arrays[len(arrays) // 2 :]
        count[operation] += 1
        size[operation] += sum(math.prod(dims) * bits // 8 for dims, bits in arrays)
        if operation in ("all-gather", "all-reduce"):
            gathered |= {dims for dims, _ in arrays}
    counts, sizes = dict(sorted(count.items())), dict(sorted(size.items()))
    return Collectives(counts, sizes, frozenset(gathered))


def whole_states(found: Collectives, made: Assembly) -> list[list[int]]:
    """Return what a device is given that is as large as the states of a whole (micro)batch.

    Weights, which are gathered for their use, are left out: nothing should remain.
    """
    rows = made.settings.batch_size // made.settings.microbatches
    size = rows * made.length * made.config.d_model
    weights = set()
    for name, leaf in trees.flatten(made.bones.shapes).items():
        stacked = made.bones.axes[name][:1] == ("layers",)
        weights.add(_plain(leaf.shape[1:] if stacked else leaf.shape))
    large = [dims for dims in found.gathered if math.prod(dims) >= size]
    return sorted(list(dims) for dims in large if _plain(dims) not in weights)


def _plain(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Sort dimensions, without those of one."""
    return tuple(sorted(n for n in dims if n > 1))

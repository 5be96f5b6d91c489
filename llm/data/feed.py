# SPDX-License-Identifier: Apache-2.0
"""The resumable input: a batch is a pure function of the step, so a checkpoint needs one integer.

Every training example is a draw, numbered from 0. Step s of a run with global batch size B takes
draws s*B … s*B+B-1, and each host computes only its own slice of them. Which row a draw is follows
from (seed, draw) alone: a mixture decides the source, a seeded bijection of each epoch the row.
"""

import functools
import itertools
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm import files
from llm.data import permutation
from llm.data.rows import Batch, RowDataset
from llm.errors import ConfigError, DataError, unknown

_SCALE = 1 << 32  # mixture weights are integers that sum to this: all counts are exact
_BLOCK = 1 << 10  # smallest block of draws in which a mixture is balanced


class _Blend(NamedTuple):
    """Sources drawn by weight: which, cumulative integer weights, draws per block, number."""

    sources: tuple[int, ...]
    edges: tuple[int, ...]
    block: int
    number: int = 0


class _Phase(NamedTuple):
    """From its first draw on a blend holds; `before` draws each source had by then."""

    first: int
    blend: _Blend
    before: np.ndarray


class Feed:
    """Batches of rows from one or more datasets.

    Args:
        datasets: name -> rows.
        weights: name -> share of the draws; 0 leaves a dataset out. None joins the datasets into
            one, in which every row comes once per epoch.
        seed: of the order.
        batch_size: global, in rows.
        host_index, host_count: which slice of each batch this host reads.
        shuffle: another order in every epoch; False keeps the order on disk.
        epochs: how often a row may come; 0 = without end. Where the draws end inside a batch, the
            batch is completed with blank rows (all zero, so their weights are zero).
        phases: (first step, weights) of later phases, in order; `weights` hold before the first.
        offset: draws before step 0, to go on with another batch size: `old_step * old_batch_size -
            new_step * new_batch_size`.

    Raises:
        ConfigError: the weights or sizes make no sense.
        DataError: there are no rows, or the datasets do not go together.
    """

    def __init__(
        self,
        datasets: Mapping[str, RowDataset],
        weights: Mapping[str, float] | None = None,
        *,
        seed: int,
        batch_size: int,
        host_index: int = 0,
        host_count: int = 1,
        shuffle: bool = True,
        epochs: int = 0,
        phases: Sequence[tuple[int, Mapping[str, float]]] = (),
        offset: int = 0,
    ):
        _check_datasets(datasets)
        if batch_size < 1 or host_count < 1 or batch_size % host_count:
            raise ConfigError(
                f"A global batch of {batch_size} rows cannot be divided among {host_count} hosts.",
                "Choose train.batch_size as a multiple of the number of hosts.",
            )
        if not 0 <= host_index < host_count:
            raise ConfigError(f"Host {host_index} is not one of {host_count} hosts.")
        if epochs < 0:
            raise ConfigError(f"data.epochs is {epochs}.", "Use 0 to repeat without end.")
        shares = [_check_weights(part, datasets) for part in (weights, *(w for _, w in phases))]
        used = {name for part in shares for name in part or datasets if not part or part[name] > 0}
        self.names = [name for name in datasets if name in used]
        self.datasets = {name: datasets[name] for name in self.names}
        self.seed, self.batch_size, self.shuffle = seed, batch_size, shuffle
        self.host_index, self.host_count = host_index, host_count
        self.epochs, self.offset = epochs, offset
        rows = [len(dataset) for dataset in self.datasets.values()]
        self._starts = np.cumsum([0, *rows])
        # Without weights all rows are one source.
        self._sizes = np.array([sum(rows)] if weights is None else rows)
        firsts = [0, *(offset + step * batch_size for step, _ in phases)]
        self._phases = _phases(firsts, self.names, shares, seed)
        self._total = _total(self._phases, self._sizes * epochs, seed) if epochs else None
        first = next(iter(self.datasets.values()))
        self.fields, self.length = first.fields, first.length
        later = [[p.first, p.blend.sources, p.blend.edges] for p in self._phases[1:]]
        self.fingerprint = files.hash_json(
            [[name, rows.fingerprint] for name, rows in self.datasets.items()]
            + [list(self._phases[0].blend.edges), shuffle]
            + later
        )

    @property
    def steps(self) -> int | None:
        """Number of steps before the data are exhausted; None without an `epochs` limit."""
        if self._total is None:
            return None
        return max(0, -(-(self._total - self.offset) // self.batch_size))

    def require(self, steps: int) -> None:
        """Check before training that the data last for so many steps.

        Raises:
            DataError: they do not.
        """
        if self.steps is not None and self.steps < steps:
            raise DataError(
                f"The data last for {self.steps} steps ({self.epochs} epochs of "
                f"{self._starts[-1]:,} rows), config.train.steps is {steps}.",
                "Lower train.steps, add data, or set data.epochs=0 to repeat.",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in the rows of all datasets, at least 1."""
        return max(1, int(self._starts[-1]) // self.batch_size)

    def drawn(self, steps: int) -> dict[str, int]:
        """Return how many rows of each dataset come in the first steps of a mixture."""
        counts = _drawn(self._phases, self.offset + steps * self.batch_size, self.seed)
        return dict(zip(self.names, counts.tolist(), strict=True))

    def ids(self, step: int) -> list[tuple[str, int]]:
        """Return (dataset, row) of every example of the global batch; ("", -1) is a blank row."""
        sources, rows = self._locate(step, 0, self.batch_size)
        return [
            (self.names[source], row) if row >= 0 else ("", -1)
            for source, row in zip(sources.tolist(), rows.tolist(), strict=True)
        ]

    def batch(self, step: int, params: Any = None) -> Batch:
        """Return this host's slice of a step's batch: field -> [batch_size / host_count, length].

        Raises:
            DataError: the data are exhausted (`epochs`).
        """
        share = self.batch_size // self.host_count
        sources, rows = self._locate(step, self.host_index * share, share)
        result: Batch = {}
        for source in np.unique(sources).tolist():
            chosen = np.flatnonzero((sources == source) & (rows >= 0))
            part = self.datasets[self.names[source]].take(rows[chosen])
            if len(chosen) == share:
                return part
            for field, values in part.items():
                if field not in result:
                    result[field] = np.zeros((share, *values.shape[1:]), values.dtype)
                result[field][chosen] = values
        return result

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the step: nothing."""
        return {}

    def _locate(self, step: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return source and row of draws of a step; row -1 for blanks after the last epoch."""
        if step < 0:
            raise DataError(f"There is no step {step}.")
        first = self.offset + step * self.batch_size
        draws = np.arange(first + start, first + start + count, dtype=np.int64)
        blank = np.zeros(count, bool)
        if self._total is not None:
            if first >= self._total:
                raise DataError(
                    f"The data are exhausted at step {step}: {self.epochs} epochs are "
                    f"{self.steps} steps.",
                    "Lower train.steps, add data, or set data.epochs=0 to repeat.",
                )
            blank = draws >= self._total
            draws = np.minimum(draws, self._total - 1)
        sources, places = _assign(self._phases, draws, self.seed)
        rows = np.empty(count, np.int64)
        for source in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == source)
            rows[mine] = self._order(source, places[mine])
        if len(self._sizes) != len(self.names):  # joined: one source over all datasets
            sources = np.searchsorted(self._starts, rows, side="right") - 1
            rows = rows - self._starts[sources]
        rows[blank] = -1
        return sources, rows

    def _order(self, source: int, places: np.ndarray) -> np.ndarray:
        """Return the rows at places of a source's endless sequence of epochs."""
        size = int(self._sizes[source])
        epochs, rows = places // size, places % size
        if not self.shuffle:
            return rows
        order = np.argsort(epochs, kind="stable")
        numbers, starts = np.unique(epochs[order], return_index=True)
        for epoch, mine in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            round_keys = permutation.key("rows", self.seed, source, epoch)
            rows[mine] = permutation.permute(rows[mine], size, round_keys)
        return rows


def prefetch(
    source: Any, start: int, depth: int = 2, stop: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (step, batch) from a thread that works ahead.

    Args:
        source: has `batch(step)`.
        start: first step.
        depth: batches to hold ready.
        stop: step to end before; None goes on until the source raises.

    Raises:
        Exception: whatever `source.batch` raised, at the step it happened.
    """
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(max(1, depth))
    closed = threading.Event()

    def work() -> None:
        step = start
        while not closed.is_set() and (stop is None or step < stop):
            try:
                ready.put((step, source.batch(step), None))
            except BaseException as error:
                ready.put((step, None, error))
                return
            step += 1
        ready.put((step, None, StopIteration()))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            step, batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield step, batch
    finally:
        closed.set()
        while thread.is_alive():  # a full queue would keep the thread waiting
            _drain(ready)
            thread.join(0.01)


def _drain(waiting: queue.Queue) -> None:
    while True:
        try:
            waiting.get_nowait()
        except queue.Empty:
            return


def _check_datasets(datasets: Mapping[str, RowDataset]) -> None:
    if not datasets:
        raise DataError("There are no datasets to train on.", "Set data.path.")
    first_name, first = next(iter(datasets.items()))
    for name, dataset in datasets.items():
        if not len(dataset):
            raise DataError(f"The dataset {name!r} has no rows.", "Check its source.")
        if dataset.fields != first.fields or dataset.length != first.length:
            raise DataError(
                f"The rows of {name!r} ({dataset.length} tokens) and {first_name!r} "
                f"({first.length} tokens) do not go together.",
                "Prepare all datasets with the same data.length and kind.",
            )


def _check_weights(
    weights: Mapping[str, float] | None, datasets: Mapping[str, RowDataset]
) -> dict[str, float] | None:
    if weights is None:
        return None
    for name, weight in weights.items():
        if name not in datasets:
            raise unknown("dataset of data.mixture", name, datasets)
        if not np.isfinite(weight) or weight < 0:
            raise ConfigError(f"data.mixture.{name} is {weight}.", "Use a weight of 0 or more.")
    missing = [name for name in datasets if name not in weights]
    if missing:
        raise ConfigError(
            f"data.mixture has no weight for {', '.join(missing)}.", "Use 0 to leave one out."
        )
    total = sum(weights.values())
    if total <= 0:
        raise ConfigError("All weights of data.mixture are 0.", "Give one dataset a weight.")
    return {name: weights[name] / total for name in datasets}


def _phases(
    firsts: Sequence[int],
    names: Sequence[str],
    shares: Sequence[Mapping[str, float] | None],
    seed: int,
) -> list[_Phase]:
    """Lay phases end to end; each goes on in every source where the one before stopped."""
    if any(later <= first for first, later in itertools.pairwise(firsts)):
        raise ConfigError(f"Phases begin with the draws {list(firsts)}.", "Put them in order.")
    phases: list[_Phase] = []
    count = 1 if shares[0] is None else len(names)
    before = np.zeros(count, np.int64)
    for number, (first, part) in enumerate(zip(firsts, shares, strict=True)):
        if phases:
            before = _drawn(phases, first, seed)
        own = None if part is None else [part[name] for name in names]
        phases.append(_Phase(first, _blend(own, number), before))
    return phases


def _blend(shares: list[float] | None, number: int) -> _Blend:
    if shares is None:
        return _Blend((0,), (0, _SCALE), _BLOCK)
    kept = [source for source, share in enumerate(shares) if share > 0]
    sums = np.cumsum([0.0, *(shares[source] for source in kept)])
    edges = [round(_SCALE * edge) for edge in sums.tolist()]
    edges[-1] = _SCALE
    smallest = min(high - low for low, high in itertools.pairwise(edges))
    if smallest < _SCALE >> 20:
        raise ConfigError(
            "A weight of data.mixture is below a millionth of the total.", "Leave it out with 0."
        )
    # Two draws of every source per block at least: else rounded edges could cross.
    block = max(_BLOCK, 1 << (2 * _SCALE // smallest).bit_length())
    return _Blend(tuple(kept), tuple(edges), block, number)


def _counts(blend: _Blend, draws: int) -> list[int]:
    """Return the cumulative counts of the sources after a whole number of blocks."""
    return [draws * edge // _SCALE for edge in blend.edges]


def _drawn(phases: Sequence[_Phase], draws: int, seed: int) -> np.ndarray:
    """Return how many of the first draws each source had."""
    phase = next(p for p in reversed(phases) if p.first <= draws)
    blend, inside = phase.blend, draws - phase.first
    whole = inside // blend.block * blend.block
    owners = _block(blend, seed, inside // blend.block)[0][: inside - whole]
    counts = phase.before.copy()
    counts[list(blend.sources)] += np.diff(_counts(blend, whole))
    return counts + np.bincount(np.asarray(blend.sources)[owners], minlength=len(counts))


def _assign(
    phases: Sequence[_Phase], draws: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each draw its source, and its place in that source's own sequence."""
    sources = np.empty(len(draws), np.int64)
    places = np.empty(len(draws), np.int64)
    owner = np.searchsorted([phase.first for phase in phases], draws, side="right") - 1
    owner = np.maximum(owner, 0)
    for number in np.unique(owner).tolist():
        first, blend, before = phases[number]
        inside = draws - first
        for block in np.unique(inside[owner == number] // blend.block).tolist():
            mine = (owner == number) & (inside // blend.block == block)
            owners, ranks = _block(blend, seed, block)
            slots = inside[mine] % blend.block
            sources[mine] = np.asarray(blend.sources)[owners[slots]]
            places[mine] = ranks[slots] + before[sources[mine]]
    return sources, places


@functools.lru_cache(maxsize=8)
def _block(blend: _Blend, seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return source and place of every draw of one block.

    The sources own shuffled slots of the block, in numbers that keep every source within one draw
    of its exact share at each block's end.
    """
    slots = np.arange(blend.block)
    if len(blend.sources) == 1:
        return np.zeros(blend.block, np.int64), slots + block * blend.block
    before = np.asarray(_counts(blend, block * blend.block))
    edges = np.asarray(_counts(blend, (block + 1) * blend.block)) - before
    phase = (blend.number,) if blend.number else ()
    round_keys = permutation.key("mixture", seed, block, *phase)
    shuffled = permutation.permute(slots, blend.block, round_keys)
    owners = np.searchsorted(edges, shuffled, side="right") - 1
    order = np.argsort(owners, kind="stable")
    places = np.empty(blend.block, np.int64)
    places[order] = slots - edges[owners[order]] + np.diff(before)[owners[order]]
    return owners, places


def _total(phases: Sequence[_Phase], limits: np.ndarray, seed: int) -> int:
    """Return the number of draws before a source would come more often than its limit."""
    ends = [*(phase.first for phase in phases[1:]), None]
    for phase, end in zip(phases, ends, strict=True):
        found = _within(phase, limits, seed)
        if end is None or found < end:
            return found
    raise AssertionError("the last phase has no end")


def _within(phase: _Phase, limits: np.ndarray, seed: int) -> int:
    """Return the number of draws at which a phase without end would pass a limit."""
    blend, left = phase.blend, (limits - phase.before)[list(phase.blend.sources)]
    low, high = 0, int(left.sum()) // blend.block + 1
    while low < high:  # the last block that all sources can fill
        middle = (low + high + 1) // 2
        done = np.diff(_counts(blend, middle * blend.block))
        low, high = (middle, high) if (done <= left).all() else (low, middle - 1)
    first = low * blend.block
    owners, places = _block(blend, seed, low)
    over = np.flatnonzero(places >= left[owners])
    return phase.first + first + (int(over[0]) if over.size else blend.block)

# SPDX-License-Identifier: Apache-2.0
"""The one thread that runs the model: a bounded line of jobs, decoded in small batches.

Jobs that wait together are read together as one batch. Batches that run take turns, so a short
request does not wait for a long one to end, and a cancelled job stops at its next turn.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llm.generate.decode import CHUNK, Batch, Collector, Piece, Request

log = logging.getLogger(__name__)

MAX_ROWS = 16  # of all running batches together
PIECE_SECONDS = 0.05  # between two pieces of a stream, with one batch running


class QueueFull(Exception):
    """As many jobs as allowed wait or run."""


class Closed(Exception):
    """The worker takes no more jobs."""


class Failed(NamedTuple):
    """What a job receives instead of a piece when the model could not go on."""

    message: str


class Job:
    """One generation.

    Args:
        request: what to generate.
        deliver: called in the worker's thread with each `Piece`, or once with `Failed`.
    """

    def __init__(self, request: Request, deliver: Callable[[Piece | Failed], None]):
        self.request = request
        self.deliver = deliver
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the job at the next step; nothing more is delivered."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the job any more."""
        return self._cancelled.is_set()


class _Group:
    """A running batch with the jobs of its rows."""

    def __init__(self, batch: Any, jobs: Sequence[Job], tokenizer: Any):
        self.batch = batch
        self.jobs = jobs
        self.collectors = [Collector(job.request, tokenizer) for job in jobs]
        self.open = set(range(len(jobs)))
        self.steps = 1

    def fail(self, message: str) -> None:
        """Tell every job that is still open."""
        for row in self.open:
            self.jobs[row].deliver(Failed(message))
        self.open.clear()


class Worker:
    """Runs a language model in a thread of its own.

    Args:
        lm: has `model`, `params`, `tokenizer`, and `mesh` where it is laid over devices.
        max_queue: jobs waiting or running at most.
        start_batch: requests -> batch; for tests. Default: `llm.generate.decode.Batch`.
    """

    def __init__(
        self,
        lm: Any,
        max_queue: int = 32,
        start_batch: Callable[[Sequence[Request]], Any] | None = None,
    ):
        self._tokenizer = lm.tokenizer
        self._start_batch = start_batch or _starter(lm)
        self._max_queue = max_queue
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._groups: list[_Group] = []
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that are being decoded."""
        return sum(len(group.open) for group in list(self._groups))

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs in the line, all or none.

        Raises:
            Closed: the worker is shutting down.
            QueueFull: they do not all fit.
        """
        with self._changed:
            if self._closed:
                raise Closed
            if self.waiting + self.running + len(jobs) > self._max_queue:
                raise QueueFull
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Take no more jobs, cancel those there are, and wait for the thread."""
        with self._changed:
            self._closed = True
            begun = [group.jobs[row] for group in self._groups for row in list(group.open)]
            for job in [*begun, *self._waiting]:
                if not job.cancelled:
                    job.deliver(Failed("The server is shutting down."))
                job.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout)

    def _take(self) -> list[Job] | None:
        """Return jobs to begin (waiting for one if nothing runs); None at the end."""
        with self._changed:
            while not self._waiting and not self._groups and not self._closed:
                self._changed.wait()
            if self._closed and not self._waiting and not self._groups:
                return None
            room = MAX_ROWS - self.running
            jobs: list[Job] = []
            while self._waiting and len(jobs) < room:
                job = self._waiting.popleft()
                if not job.cancelled:
                    jobs.append(job)
            if jobs:  # counted as running from here on, so that the line stays bounded
                self._groups.append(_Group(None, jobs, self._tokenizer))
            return jobs

    def _run(self) -> None:
        while (jobs := self._take()) is not None:
            if jobs:
                self._guard(self._groups[-1], self._begin)
            for group in list(self._groups):
                self._guard(group, self._advance)
            self._groups = [group for group in self._groups if group.open]

    def _guard(self, group: _Group, action: Callable[[_Group], None]) -> None:
        """Run one action of a batch; what goes wrong ends that batch, not the server."""
        try:
            if group.open:
                action(group)
        except Exception:
            log.exception("a batch of %d generations failed", len(group.jobs))
            group.fail("The model could not finish this request.")

    def _begin(self, group: _Group) -> None:
        group.batch = self._start_batch([job.request for job in group.jobs])

    def _advance(self, group: _Group) -> None:
        """Take a few steps of one batch and hand out what they gave."""
        for row in [row for row in group.open if group.jobs[row].cancelled]:
            group.batch.end(row)
            group.open.discard(row)
        if not group.open:
            return
        started = time.perf_counter()
        steps = group.batch.steps(group.steps)
        elapsed = max(time.perf_counter() - started, 1e-6)
        share = PIECE_SECONDS / len(self._groups)
        group.steps = max(1, min(CHUNK, int(group.steps * share / elapsed)))
        for row in list(group.open):
            piece = group.collectors[row].add(steps[row])
            if piece.reason:
                group.batch.end(row)
                group.open.discard(row)
            group.jobs[row].deliver(piece)


def _starter(lm: Any) -> Callable[[Sequence[Request]], Any]:
    return lambda requests: Batch(lm.model, lm.params, requests, getattr(lm, "mesh", None))

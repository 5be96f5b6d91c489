# SPDX-License-Identifier: Apache-2.0
"""The one thread that runs the model: it keeps the engine going while there are jobs."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llm.generate.engine import Engine, Handle, Options, QueueFull
from llm.generate.requests import Piece, Request

__all__ = ["Closed", "Failed", "Job", "QueueFull", "Worker"]

log = logging.getLogger(__name__)

MAX_ROWS = 16  # generations decoded together
FAILED = "failed"  # the reason of pieces that a broken step leaves


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
        self._deliver = deliver
        self._cancelled = False
        self.handle: Handle | None = None

    def cancel(self) -> None:
        """End the job at the next step; nothing more is delivered."""
        self._cancelled = True
        if self.handle is not None:
            self.handle.cancel()

    def fail(self, message: str) -> None:
        """Deliver a failure, unless the job is cancelled."""
        if not self._cancelled:
            self._deliver(Failed(message))

    def give(self, piece: Piece) -> None:
        """Take a piece from the engine."""
        if piece.reason == FAILED:
            self.fail("The model could not finish this request.")
        elif not self._cancelled:
            self._deliver(piece)


class Worker:
    """Runs a language model in a thread of its own.

    Args:
        lm: has `engine`, what `llm.load` returns.
        max_queue: jobs waiting or running at most.
        engine: to drive instead; for tests.
    """

    def __init__(self, lm: Any, max_queue: int = 32, engine: Engine | None = None):
        self.engine = engine or lm.engine(Options(rows=MAX_ROWS, queue=max_queue, whole=True))
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self.engine.waiting

    @property
    def running(self) -> int:
        """Jobs that are read or decoded."""
        return self.engine.running

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def warm_up(self) -> None:
        """Compile every program, so that no client waits for one."""
        self.engine.warm_up()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs in the line, all or none.

        Raises:
            Closed: the worker is shutting down.
            QueueFull: they do not all fit.
        """
        with self._changed:
            if self._closed:
                raise Closed
            handles = self.engine.submit_all(
                [job.request for job in jobs], [job.give for job in jobs]
            )
            for job, handle in zip(jobs, handles, strict=True):
                job.handle = handle
            self._jobs = [j for j in self._jobs if j.handle and not j.handle.reason] + list(jobs)
            self._changed.notify()

    def close(self, timeout: float = 10.0) -> None:
        """Take no more jobs, cancel those there are, and wait for the thread."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                if job.handle is not None and not job.handle.reason:
                    job.fail("The server is shutting down.")
                    job.cancel()
            self._changed.notify()
        self._thread.join(timeout)

    def _wait(self) -> bool:
        """Wait for work; False at the end."""
        with self._changed:
            while not (self.engine.waiting or self.engine.running or self._closed):
                self._changed.wait()
            return bool(self.engine.waiting or self.engine.running)

    def _run(self) -> None:
        while self._wait():
            try:
                self.engine.step()
            except Exception:
                log.exception("%d generations failed", self.engine.running)
                self.engine.fail(FAILED)

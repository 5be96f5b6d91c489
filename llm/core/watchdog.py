# SPDX-License-Identifier: Apache-2.0
"""End a run that hangs: a thread watches that the main one moves on, else exit code 6. No JAX.

The loop says with `at` what it begins to do. Stacks go to `<workdir>/stacks/process-<i>.txt`.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from llm import files
from llm.errors import PeerError

FOLDER = "stacks"
PATIENCE = 4  # start, compilation, evaluation and saving may take so many step timeouts


class Position:
    """What this process is doing; one per process, read by other threads.

    Attributes:
        phase: "start", "compile", "step", "save" or the name of an evaluation.
        step: the step it belongs to.
        moves: how often `at` was called.
    """

    def __init__(self) -> None:
        self.phase, self.step, self.moves = "start", 0, 0

    def __str__(self) -> str:
        return f"{self.phase} at step {self.step}" if self.phase != "step" else f"step {self.step}"


position = Position()


def at(phase: str, step: int) -> None:
    """Note what this process begins to do."""
    position.phase, position.step = phase, step
    position.moves += 1


def open_file(workdir: str | os.PathLike, index: int = 0) -> IO[str]:
    """Open this process's file of stacks for appending.

    It lies on this host where the workdir is remote or cannot be written: the system writes stacks
    without Python's help, so that it needs a real file.
    """
    name = f"process-{index}.txt"
    folder = files.path(workdir) / FOLDER
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            return (folder / name).open("a", encoding="utf-8")
    folder = Path(tempfile.mkdtemp(prefix="jax-llm-")) / FOLDER
    folder.mkdir()
    return (folder / name).open("a", encoding="utf-8")


def die(error: PeerError, file: IO[str]) -> None:
    """Write the stacks of all threads and the error's lines, and end with its exit code.

    Nothing is cleaned up: other threads may hang. Whatever was saved is intact.
    """
    with contextlib.suppress(OSError):
        file.write(f"\n{error.problem}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        lines = [f"error: {error.problem}", f"  Stacks: {file.name}", f"  {error.fix}"]
        print(*lines, sep="\n", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


@contextlib.contextmanager
def watch(
    step_timeout: float, workdir: str | os.PathLike, index: int = 0, tick: float = 1.0
) -> Iterator[None]:
    """End this process when a step takes too long, for the length of a `with` block.

    Time is counted in ticks of the watching thread: a process that was stopped (Ctrl-Z, a
    suspended machine) and goes on, or a clock that jumps, does not end the run.

    Args:
        step_timeout: seconds between two calls of `at`; `PATIENCE` times that in other phases
            than "step". 0 does not watch.
        workdir: where the stacks go.
        index: of this process.
        tick: seconds between two looks.
    """
    if step_timeout <= 0:
        yield
        return
    limits = {"step": step_timeout}
    over = threading.Event()
    arguments = (limits, step_timeout * PATIENCE, over, min(tick, step_timeout / 4))
    thread = threading.Thread(
        target=_guard, args=(*arguments, workdir, index), name="watchdog", daemon=True
    )
    at("start", position.step)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _guard(
    limits: Mapping[str, float],
    otherwise: float,
    over: threading.Event,
    tick: float,
    workdir: str | os.PathLike,
    index: int,
) -> None:
    seen, waited = position.moves, 0.0
    while not over.wait(tick):
        if position.moves != seen:
            seen, waited = position.moves, 0.0
            continue
        waited += tick
        limit = limits.get(position.phase, otherwise)
        if waited >= limit:
            problem = f"This process ({index}) hangs: {position} has not ended for {limit:g} s."
            fix = "Run the same command to resume; config.train.step_timeout sets the limit."
            die(PeerError(problem, fix), open_file(workdir, index))

# SPDX-License-Identifier: Apache-2.0
"""Stop on SIGTERM or Ctrl-C: the first asks the loop to save and end, the second ends at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

from llm.errors import Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME = 0.5  # seconds: a launcher and its process group often deliver one request twice


class Stop:
    """Whether this run was asked to stop; `requested` is for the training loop."""

    def __init__(self, processes: int = 1):
        self.signal: signal.Signals | None = None  # the first one received by this process
        self.received = 0.0  # monotonic seconds
        self.processes = processes

    def requested(self, step: int) -> bool:
        """Tell whether to save and end now.

        A multi-process run must call this in every process at every step: all of them then get
        the same answer at the same step.
        """
        if self.processes == 1:
            return self.signal is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def watch(processes: int = 1) -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT for the length of a `with` block in the main thread.

    A thread reads the signals as they arrive, so a second one also ends a process whose main
    thread is busy in compiled code. It ends with 128 + the signal's number, as a shell reports it.
    Signals within half a second count as one.

    Args:
        processes: `jax.process_count()`. With more than one, `jax.distributed.initialize` must
            have been called; it handles SIGTERM itself and makes the processes agree on a step.
            Ctrl-C is passed on to it as SIGTERM.
    """
    stop = Stop(processes)
    handled = _SIGNALS if processes == 1 else (signal.SIGINT,)
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=_listen, args=(reader, stop, handled), daemon=True)
    previous = {number: signal.signal(number, _remember) for number in handled}
    old_descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(old_descriptor)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()


@contextlib.contextmanager
def until_ready(enabled: bool = True) -> Iterator[None]:
    """Turn SIGTERM into an error that asks to run again, while nothing is there to be saved.

    Training replaces this by `watch`; elsewhere than in the main thread it does nothing.

    Raises:
        Preempted: the signal came.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _refuse_to_begin)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _refuse_to_begin(number: int, frame: object) -> None:
    raise Preempted("Stopped by SIGTERM before a step.", "Run the same command to resume.")


def _remember(number: int, frame: object) -> None:
    """Do nothing in the main thread: the listening thread was woken before this runs."""


def _listen(reader: socket.socket, stop: Stop, handled: tuple[signal.Signals, ...]) -> None:
    while data := reader.recv(16):
        for number in data:
            if number in handled:
                _receive(signal.Signals(number), stop)


def _receive(number: signal.Signals, stop: Stop) -> None:
    now = time.monotonic()
    if stop.signal is not None:
        if now - stop.received < _SAME:
            return
        _say(f"{number.name} again: ending at once; the newest saved checkpoint is intact.")
        os._exit(128 + number)
    stop.signal, stop.received = number, now
    _say(f"{number.name}: saving after this step, then ending. A second signal ends at once.")
    if stop.processes > 1:
        os.kill(os.getpid(), signal.SIGTERM)


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), (line + "\n").encode())

# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: join them, notice a lost or frozen one, and leave together.

JAX's coordination service sends heartbeats from a thread of its own. When a process stops sending
them, JAX aborts all others (SIGABRT) with a page of text. Here this becomes exit code 6, three
lines, and the Python stacks of all threads in `<workdir>/stacks/process-<i>.txt`, where native
libraries' error output goes too.
"""

import contextlib
import ctypes
import faulthandler
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

from llm.core import watchdog
from llm.errors import ConfigError, PeerError

HEARTBEAT = 60.0  # seconds; config.train.heartbeat
_FAREWELL = 10  # seconds that a process with an error waits for the others to end too
_NAMES = ("COORDINATOR_ADDRESS", "PROCESS_COUNT", "PROCESS_ID")
_INDEX = ("PROCESS_ID", "SLURM_PROCID", "TPU_WORKER_ID", "OMPI_COMM_WORLD_RANK")
_FIX = "Look at its log and host, then run the same command everywhere: it resumes."
_SIGN = re.compile(
    r"gloo|nccl|coordination service|distributed service|heartbeat|connection (closed|reset)"
    r"|socket closed|barrier|broken pipe",
    re.IGNORECASE,
)
# How JAX 0.10 names the lost: "stopped sending heartbeats):\n1\n3\n", "Task 1 heartbeat timeout".
_LOST = (
    re.compile(r"stopped sending heartbeats\):\s*((?:\d+[\s,]+)+)"),
    re.compile(r"[Tt]ask (\d+) (?:heartbeat timeout|has)"),
    re.compile(r"Tasks? (?:that|which) (?:timed out|did not)[^\d]*((?:\d+[\s,]*)+)"),
)


class Group(NamedTuple):
    """What this process knows of the run it joined.

    Attributes:
        process: the number of this one.
        processes: how many there are; 0 before they have met.
        heartbeat: seconds without a sign of life after which a process counts as lost.
        file: this process's stacks and its libraries' error output.
        begin: where in the file this run begins.
        workdir: of the run.
    """

    process: int
    processes: int
    heartbeat: float
    file: IO[str]
    begin: int
    workdir: str | os.PathLike


class _Now:
    """The group this process has joined, and the code it is leaving with, if it is."""

    group: Group | None = None
    leaving: int | None = None


def capture(workdir: str | os.PathLike) -> None:
    """Send native error output to this process's file, Python's to the terminal; take SIGABRT.

    To be called before anything else writes or logs (`--distributed`).
    """
    terminal = os.dup(sys.stderr.fileno())
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="replace")
    given = [os.environ[name] for name in _INDEX if os.environ.get(name, "").isdigit()]
    _record(workdir, int(given[0]) if given else 0)


def _record(workdir: str | os.PathLike, index: int) -> None:
    """Make the file of a process number the one that native output and stacks go to."""
    file = watchdog.open_file(workdir, index)
    file.write(f"process {index} on {socket.gethostname()}, pid {os.getpid()}\n")
    file.flush()
    os.dup2(file.fileno(), 2)
    faulthandler.enable(file)
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)  # faulthandler has just taken it
    _Now.group = Group(index, 0, HEARTBEAT, file, file.tell(), workdir)


def join(heartbeat: float = HEARTBEAT) -> None:
    """Join the other processes of the run, after `capture`.

    Cloud TPU and Slurm tell JAX its peers; elsewhere set COORDINATOR_ADDRESS (host:port),
    PROCESS_COUNT and PROCESS_ID in each process. JOIN_TIMEOUT: seconds to wait for them.

    Args:
        heartbeat: seconds after which a process that gives no sign of life ends the others.

    Raises:
        ConfigError: the variables are incomplete.
        PeerError: the others did not come.
    """
    address = _address(os.environ)
    import jax

    try:
        jax.distributed.initialize(
            **address,
            heartbeat_timeout_seconds=max(int(heartbeat * 0.9), 2),  # telling takes a moment too
            shutdown_timeout_seconds=_FAREWELL,
            initialization_timeout=int(os.environ.get("JOIN_TIMEOUT", 300)),
        )
    except (RuntimeError, ValueError) as error:
        raise PeerError(
            f"The processes of this run did not find each other: {_first_line(error)}",
            "Check that each was started, and that COORDINATOR_ADDRESS can be reached from it.",
        ) from error
    index, group = jax.process_index(), _Now.group
    if group is not None:
        if index != group.process:  # only known from here on
            _record(group.workdir, index)
            group = _Now.group or group
        _Now.group = group._replace(processes=jax.process_count(), heartbeat=heartbeat)


def _address(environment: Mapping[str, str]) -> dict[str, Any]:
    given = [environment.get(name) for name in _NAMES]
    if not any(given):
        return {}
    if not all(given):
        missing = next(n for n, value in zip(_NAMES, given, strict=True) if not value)
        raise ConfigError(f"{missing} is not set.", f"--distributed needs {', '.join(_NAMES)}.")
    address, count, index = (str(value) for value in given)
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
    }


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _on_abort(number: int) -> None:
    """Answer an abort, on the thread that aborts: a lost peer is exit code 6.

    Anything else that aborts says so on the terminal and ends as aborts do.
    """
    group, said = _Now.group, ""
    if group is not None:
        with contextlib.suppress(OSError), open(group.file.name, encoding="utf-8") as file:
            file.seek(group.begin)
            said = file.read()
        if _Now.leaving is not None:
            os._exit(_Now.leaving)
        if _SIGN.search(said):
            watchdog.die(_loss(group, said), group.file)
    with contextlib.suppress(OSError, ValueError):
        print(*said.splitlines()[:3], sep="\n", file=sys.stderr, flush=True)
    ctypes.CDLL(None).signal(number, None)  # the default; abort() then ends the process


def blame(error: BaseException) -> None:
    """End this process with exit code 6 when an error comes from a lost connection to another.

    Of more than two processes, JAX's own verdict names the lost one: it ends this process while
    this waits for it, at most for the heartbeat.
    """
    group = _Now.group
    if group is None or not _SIGN.search(str(error)):
        return
    with contextlib.suppress(OSError):
        group.file.write("".join(traceback.format_exception(error)))
    if group.processes > 2:
        time.sleep(group.heartbeat + 5)
    watchdog.die(_loss(group, str(error)), group.file)


def _loss(group: Group, said: str) -> PeerError:
    lost = lost_processes(said) - {group.process}
    if not lost and group.processes == 2:
        lost = {1 - group.process}
    if not lost and group.process and re.search(r"leader|Heartbeat|PollForError", said):
        lost = {0}
    names = [f"{number}{_host(group, number)}" for number in sorted(lost)]
    who = f"Process {', '.join(names)}" if names else "Another process"
    return PeerError(
        f"{who} of {group.processes} is lost or frozen (no answer within "
        f"{group.heartbeat:g} s); this is process {group.process}, {watchdog.position}.",
        _FIX,
    )


def lost_processes(said: str) -> set[int]:
    """Return the numbers of the processes that JAX's message calls lost."""
    found = {number for form in _LOST for group in form.findall(said) for number in group.split()}
    return {int(number.strip(",")) for number in found}


def _host(group: Group, number: int) -> str:
    """Name the host of a process, where its file can be seen from here."""
    name = os.path.join(os.path.dirname(group.file.name), f"process-{number}.txt")
    with contextlib.suppress(OSError), open(name, encoding="utf-8", errors="replace") as file:
        starts = [line for line in file if line.startswith(f"process {number} on ")]
        if starts:
            return f" ({starts[-1].strip().partition(' on ')[2]})"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def leave(code: int) -> None:
    """End a process that has joined others with an exit code; does nothing without `join`.

    After success all leave together. After an error this process waits only briefly for the
    others, who may have met the same error or may hang without it.
    """
    group = _Now.group
    if group is None:
        return
    import jax

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code == PeerError.exit_code:
        os._exit(code)
    try:
        if code == 0:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("end")
        _Now.leaving = code
        jax.distributed.shutdown()
    except (RuntimeError, ValueError) as error:
        if code == 0:
            blame(error)
    if code:
        os._exit(code)  # the others' threads may keep this process from ending

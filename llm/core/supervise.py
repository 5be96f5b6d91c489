# SPDX-License-Identifier: Apache-2.0
"""Run a command and start it again when it was preempted, lost a peer or was killed. No JAX.

    python scripts/supervise.py [--restarts=N] [--pause=S] [--frozen=S] -- COMMAND…

--restarts: how often at most (default 20)
--pause: seconds before the first restart, doubled up to a minute for each further one (default 1);
    a command that ran for ten minutes counts as the first again
--frozen: kill the command when it stands stopped for so many seconds (default 60; 0 never)

Codes 75 and 6 and death by a signal are restarted; any other code is the command's last word. A
SIGTERM or Ctrl-C is passed on, and its code returned: the scheduler that sent it starts the run
again, if it likes.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm.errors import PeerError, Preempted

_LONG = 600.0  # seconds after which a start counts as a success
_LONGEST_PAUSE = 60.0
_LOOK = 0.2  # seconds between two looks at the command
_REASONS = {
    Preempted.exit_code: "it was preempted",
    PeerError.exit_code: "a process was lost, frozen or hung",
}


class Options(NamedTuple):
    """What the command line asks for; see this module's text."""

    restarts: int = 20
    pause: float = 1.0
    frozen: float = 60.0


def main(argv: Sequence[str]) -> int:
    """Read the command line, run and restart; return the command's last exit code."""
    arguments = list(argv)
    if "--" not in arguments or "--help" in arguments[: arguments.index("--")]:
        print(__doc__, file=sys.stderr)
        return 0 if "--help" in arguments else 2
    split = arguments.index("--")
    options, command = Options(), arguments[split + 1 :]
    try:
        for argument in arguments[:split]:
            name, _, value = argument.removeprefix("--").partition("=")
            kind = type(getattr(options, name))
            options = options._replace(**{name: kind(value)})
    except (AttributeError, ValueError):
        known = ", ".join(f"--{name}=N" for name in Options._fields)
        print(f"error: {argument} is not an option.\n  Options: {known}.", file=sys.stderr)
        return 2
    if not command:
        print("error: There is no command.\n  Write it after `--`.", file=sys.stderr)
        return 2
    return supervise(command, options)


def supervise(command: Sequence[str], options: Options) -> int:
    """Run a command until it ends for good; return its exit code, 128 + n for signal n."""
    received: list[int] = []
    child: list[subprocess.Popen] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if child and child[0].poll() is None:
            child[0].send_signal(number)

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    done, pause = 0, options.pause
    try:
        while True:
            began = time.monotonic()
            child[:] = [subprocess.Popen(command)]
            code = _wait(child[0], options.frozen)
            ended = code if code >= 0 else 128 - code
            reason = _REASONS.get(code) or (f"signal {-code} ended it" if code < 0 else "")
            if not reason or received:
                return ended
            if time.monotonic() - began > _LONG:
                done, pause = 0, options.pause
            if done >= options.restarts:
                _say(f"{reason} (code {ended}); given up after {done} restarts.")
                return ended
            done += 1
            _say(f"{reason} (code {ended}); restart {done} of {options.restarts} in {pause:g} s.")
            _rest(pause, received)
            if received:
                return ended
            pause = min(max(pause, _LOOK) * 2, _LONGEST_PAUSE)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(child: subprocess.Popen, frozen: float) -> int:
    """Wait for a process; kill it when it stands stopped for too long."""
    stopped = 0.0
    while True:
        try:
            return child.wait(_LOOK)
        except subprocess.TimeoutExpired:
            stopped = stopped + _LOOK if _is_stopped(child.pid) else 0.0
            if frozen and stopped >= frozen:
                _say(f"process {child.pid} stands stopped for {frozen:g} s; killed.")
                child.kill()


def _rest(seconds: float, received: list[int]) -> None:
    """Wait, but no longer than until a signal comes."""
    end = time.monotonic() + seconds
    while not received and time.monotonic() < end:
        time.sleep(min(_LOOK, max(end - time.monotonic(), 0)))


def _is_stopped(pid: int) -> bool:
    """Tell whether the kernel (Linux) shows a process as stopped."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return line.rpartition(")")[2].split()[0] in "Tt"


def _say(line: str) -> None:
    print(f"supervise: {line}", file=sys.stderr, flush=True)

# SPDX-License-Identifier: Apache-2.0
"""One run per directory: a lock that names its holder and dies with it. No clocks, no JAX."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llm import files
from llm.errors import StorageError

NAME = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, process_index: int = 0) -> Iterator[None]:
    """Hold the lock of a run directory for the length of a `with` block.

    The operating system drops the lock when its holder dies, however it dies. Where it offers no
    locks (object stores, some network file systems), the holder's name in the file decides: it is
    taken over when that process is gone from this host.

    Args:
        workdir: the run directory; made when absent.
        process_index: only process 0 of a multi-process run takes the lock.

    Raises:
        StorageError: another process holds the lock, or the directory cannot be written.
    """
    if process_index != 0:
        yield
        return
    file = files.path(workdir) / NAME
    if not isinstance(file, Path):
        with _hold_by_name(file):
            yield
        return
    with _open(file) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(workdir, _read(file)) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            with _hold_by_name(file):
                yield
            return
        _write(stream, json.dumps(_me()))
        try:
            yield
        finally:
            _write(stream, "")  # the file stays: deleting it could free two holders at once


def _open(file: Path) -> IO[str]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("a+", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"Cannot write {file}: {error.strerror or error}.", "Choose a writable --workdir."
        ) from error


def _write(stream: IO[str], text: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, unnamed
        stream.seek(0)
        stream.truncate()
        stream.write(text)
        stream.flush()


@contextlib.contextmanager
def _hold_by_name(file: Any) -> Iterator[None]:
    holder = _read(file)
    if holder and not _is_dead(holder):
        raise _refusal(file.parent, holder)
    files.write_atomic(file, json.dumps(_me()))
    try:
        yield
    finally:
        if _read(file) == _me():
            file.unlink(missing_ok=True)


def _me() -> dict:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _read(file: Any) -> dict:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return holder if isinstance(holder, dict) else {}
    except (OSError, ValueError):
        return {}


def _started(pid: int) -> str | None:
    """Return the kernel's start mark of a process, which tells a reused number from the old one."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return line.rpartition(")")[2].split()[19]


def _is_dead(holder: dict) -> bool:
    """Tell whether the holder certainly no longer runs; only decidable on its own host."""
    if holder.get("host") != socket.gethostname():
        return False
    pid = int(holder.get("pid", 0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _started(pid) != holder.get("started")


def _refusal(workdir: Any, holder: dict) -> StorageError:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    return StorageError(
        f"{workdir} is in use by {who}.",
        f"Stop that run or choose another --workdir (if it no longer exists, delete {NAME} there).",
    )

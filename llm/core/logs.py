# SPDX-License-Identifier: Apache-2.0
"""What happened, per process, as JSON lines: `<workdir>/logs/<process>.jsonl`. No JAX.

    from llm.core import logs
    logs.event("save", step=100, seconds=0.03)

An event is one record: "time" (UTC), "process", "step", "level", "event", and its own fields. Our
own warnings and errors are recorded as well. Nothing is written outside of `record`; the terminal
stays as quiet as it was. A full disk or a broken file system never reaches the caller.
"""

import contextlib
import datetime
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from llm import files
from llm.core.lines import Lines
from llm.core.redact import redact, redact_tree
from llm.errors import Preempted

FOLDER = "logs"
LIMIT = 4 << 20  # bytes of a file; the one before is kept as <process>.1.jsonl

_EVENTS = logging.getLogger("llm.events")
_EVENTS.propagate = False  # never to the terminal
_EVENTS.addHandler(logging.NullHandler())


def event(name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Record an event; does nothing outside of `record`."""
    _EVENTS.log(level, name, extra={"fields": fields})


class Journal(logging.Handler):
    """Write records to this process's file.

    Args:
        workdir: the run's folder.
        process: this process's number.
        limit: bytes after which a new file is begun.

    Attributes:
        step: the training step that records belong to; the loop moves it on.
    """

    def __init__(self, workdir: str | os.PathLike, process: int = 0, limit: int = LIMIT):
        super().__init__(logging.INFO)
        self.step, self._process, self._broken = 0, process, False
        self._lines = Lines(files.path(workdir) / FOLDER / f"{process}.jsonl", limit)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a disk that fails is reported once and is tried again."""
        try:
            self._lines.append(json.dumps(self._line(record), default=str, ensure_ascii=False))
            self._broken = False
        except OSError as error:
            if not self._broken:
                with contextlib.suppress(OSError, ValueError):
                    print(f"logs cannot be written ({error}); the run goes on", file=sys.stderr)
            self._broken = True

    def _line(self, record: logging.LogRecord) -> dict[str, Any]:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = dict(getattr(record, "fields", {}))
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "process": self._process,
            "step": fields.pop("step", self.step),
            "level": record.levelname.lower(),
        }
        if record.name == _EVENTS.name:
            return {**line, "event": record.getMessage(), **redact_tree(fields)}
        text = redact(record.getMessage())
        return {**line, "event": "log", "logger": record.name, "message": text}


@contextlib.contextmanager
def record(workdir: str | os.PathLike, process: int = 0, limit: int = LIMIT) -> Iterator[Journal]:
    """Record events and our own warnings for the length of a `with` block.

    An exception that leaves the block is recorded as an "error" event, unless it only says that
    the run was stopped.
    """
    journal = Journal(workdir, process, limit)
    ours = logging.getLogger("llm")
    level = _EVENTS.level
    _EVENTS.setLevel(logging.INFO)
    _EVENTS.addHandler(journal)
    ours.addHandler(journal)
    try:
        yield journal
    except BaseException as error:
        if not isinstance(error, Preempted):
            kind, message = type(error).__name__, redact(str(error))[:2000]
            event("error", logging.ERROR, kind=kind, message=message)
        raise
    finally:
        ours.removeHandler(journal)
        _EVENTS.removeHandler(journal)
        _EVENTS.setLevel(level)

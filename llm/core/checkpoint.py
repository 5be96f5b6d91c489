# SPDX-License-Identifier: Apache-2.0
"""Checkpoints we can trust: asynchronous saves, verified restores, resharding on the way in.

Orbax reads and writes the arrays. Around it: a step exists only once its manifest of checksums is
on the disk, restoring verifies every byte it reads and walks back to the newest verified step, and
a failed save leaves neither temporary files nor fewer checkpoints than before.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from llm.core import checkpoint_files as disk
from llm.core.checkpoint_restore import (
    Restored,
    agree,
    has_checkpoints,
    list_steps,
    newest_verified,
    restore,
    verify,
)
from llm.core.checkpoint_trees import BARE, describe, named_leaves, nest, snapshot, start_copies
from llm.errors import ConfigError, NonFiniteError, StorageError

__all__ = [
    "Checkpointer",
    "Restored",
    "has_checkpoints",
    "list_steps",
    "newest_verified",
    "restore",
    "verify",
]

_ENTRY = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")

log = logging.getLogger(__name__)


class Checkpointer:
    """Save the state of one run in the background and keep the right steps.

    One Checkpointer owns its directory: the run must hold the run-directory lock. In a
    multi-process run every process makes one and calls the same methods in the same order.

    Args:
        directory: the `checkpoints/` directory of the run; made when absent.
        keep_last: how many of the newest steps stay.
        keep_every: steps that are multiples of this stay for good; 0 means none.
        keep_best: (metric, "min" | "max"): the step with the best value stays too.
        asynchronous: write in the background; False waits for the disk in `save`.
        max_failures: so many failed saves in a row end the run; fewer are only logged.
        finite: entries whose floating-point leaves must be finite to be saved.
        timeout: seconds after which the processes of a run stop waiting for each other.
        strict: refuse to resume from an older step when the newest one is damaged.

    Raises:
        StorageError: the directory cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_last: int = 3,
        keep_every: int = 0,
        keep_best: tuple[str, str] | None = None,
        asynchronous: bool = True,
        max_failures: int = 3,
        finite: tuple[str, ...] = ("params", "opt_state", "ema"),
        timeout: int = 1200,
        strict: bool = False,
    ):
        if keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last is {keep_last}.", "Keep at least one step.")
        if keep_best is not None and keep_best[1] not in ("min", "max"):
            raise ConfigError(f"checkpoint.keep_best mode {keep_best[1]!r}.", "Use min or max.")
        self.directory = disk.prepare(directory)
        self.blocked = 0.0  # seconds for which the last `save` held its caller
        self._keep = disk.Keep(keep_last, keep_every, keep_best)
        self._asynchronous = asynchronous
        self._max_failures = max_failures
        self._finite = finite
        self._timeout = timeout
        self._strict = strict
        self._lead = jax.process_index() == 0
        self._orbax: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._attempt = 0
        self._failures = 0
        self._step: int | None = None  # the step being written, or written last
        _hush_orbax()
        if self._lead:
            for name in disk.clean(self.directory):
                log.warning("Removed what an interrupted run left: %s/%s", self.directory, name)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except StorageError as problem:  # the error on its way out matters more
            log.warning("%s", problem)

    def save(
        self, step: int, tree: dict, extra: dict | None = None, metrics: dict | None = None
    ) -> None:
        """Copy the tree to the host and write it in the background.

        The tree may be donated or changed as soon as this returns. A save still being written is
        waited for first. Saving the step that was saved or restored last does nothing.

        Args:
            step: the number of finished training steps.
            tree: a dict of top-level entries, each a tree of arrays.
            extra: JSON-able values to keep beside the arrays.
            metrics: values for `keep_best`.

        Raises:
            StorageError: `max_failures` saves in a row have failed.
            NonFiniteError: an entry that must be finite is not; nothing is written.
        """
        started = time.perf_counter()
        self._settle()
        if step == self._step and not self._failures:
            return
        text = json.dumps(extra or {})  # fails here, not in the background
        values = {name: float(value) for name, value in (metrics or {}).items()}
        plan = {}
        for entry, subtree in tree.items():
            if not _ENTRY.match(entry):
                raise ValueError(f"{entry!r} cannot name a checkpoint entry")
            plan[entry] = named_leaves(subtree)[0]
        start_copies(leaf for pairs in plan.values() for _, leaf in pairs)
        self._refuse_non_finite(step, plan)
        self._step = step
        self._attempt += 1
        self._start(step, plan, json.loads(text), values)
        if not self._asynchronous:
            self._settle()
        self.blocked = time.perf_counter() - started

    def restore(
        self,
        target: Any = None,
        step: int | None = None,
        shardings: Any = None,
        entries: Iterable[str] | None = None,
        *,
        strict: bool | None = None,
    ) -> Restored:
        """Restore as the owner of the run: see `restore`; damaged steps are set aside."""
        self._settle()
        strict = self._strict if strict is None else strict
        restored = restore(
            self.directory, target, step, shardings, entries, strict=strict, repair=True
        )
        self._step = restored.step
        return restored

    def wait(self) -> None:
        """Wait until the last save is verified on disk.

        Raises:
            StorageError: it failed.
        """
        self._settle()
        if self._failures:
            raise StorageError(
                f"Checkpoint step {self._step} was not saved in {self.directory}.",
                "Free disk space or check the disk, then resume the run.",
            )

    def close(self) -> None:
        """Wait for the last save and stop the background threads."""
        try:
            self.wait()
        finally:
            self._drop_orbax()

    def _refuse_non_finite(self, step: int, plan: dict[str, list]) -> None:
        names, leaves = [], []
        for entry in self._finite:
            for path, leaf in plan.get(entry, ()):
                if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact):
                    names.append("/".join((entry, *path)))
                    leaves.append(leaf)
        flags = _finite_flags(leaves)
        if not flags.all():
            raise NonFiniteError(
                f"{names[int(np.argmin(flags))]} is not finite at step {step}; "
                "this state is not saved.",
                "Resume from the newest checkpoint with a lower learning rate or other data.",
            )

    def _start(self, step: int, plan: dict[str, list], extra: dict, metrics: dict) -> None:
        """Copy to the host, then leave the rest to a thread; errors wait for `_settle`."""
        leaves, arrays = {}, {}
        for entry, pairs in plan.items():
            leaves[entry] = [describe(path, leaf) for path, leaf in pairs]
            full = [(path or (BARE,), snapshot(leaf)) for path, leaf in pairs if np.size(leaf)]
            if full:
                arrays[entry] = ocp.args.PyTreeSave(nest(full))
        content = ocp.args.Composite(**arrays)
        staging = self._staging(step)
        if jax.process_count() > 1:  # Orbax makes the processes meet, and copies their shards
            try:
                self._write(staging, content)
            except Exception as error:  # ValueError, OSError, RuntimeError, … for a bad disk
                self._error = error
                return
        job = (staging, None if jax.process_count() > 1 else content, step, leaves, extra, metrics)
        self._thread = threading.Thread(target=self._finish, args=job, name="checkpoint")
        self._thread.start()

    def _write(self, staging: Any, content: Any) -> None:
        if self._orbax is None:
            self._orbax = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(),
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=self._timeout, create_directories_asynchronously=False
                ),
            )
        # Without renames an interrupted save can lie under the step's own name.
        self._orbax.save(staging, args=content, force=not disk.is_local(self.directory))

    def _staging(self, step: int) -> Any:
        if disk.is_local(self.directory):
            return (self.directory / f".saving-{step}-{self._attempt}").absolute()
        return self.directory / str(step)

    def _finish(
        self, staging: Any, content: Any, step: int, leaves: dict, extra: dict, metrics: dict
    ) -> None:
        """Write, seal the step, delete what is no longer kept (runs in a thread)."""
        try:
            if content is not None:
                self._write(staging, content)
            if self._orbax is not None:
                self._orbax.wait_until_finished()
            if self._lead:
                disk.seal(staging, step, leaves, extra, metrics)
        except Exception as error:  # shown by `_settle` in the caller's thread
            self._error = error
            return
        if self._lead:
            try:
                disk.prune(self.directory, step, self._keep)
            except OSError as error:
                log.warning("Cannot delete old checkpoints: %s", error)

    def _settle(self) -> None:
        """Wait for the save under way and count it as a success or a failure."""
        if self._thread is None and self._error is None:
            return
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if agree(error is None):
            self._failures = 0
            return
        self._failures += 1
        self._drop_orbax()
        if self._lead and disk.is_local(self.directory):
            for leftover in self.directory.glob(f".saving-{self._step}-{self._attempt}*"):
                disk.remove_tree(leftover)
        line = f"Checkpoint step {self._step} was not saved: {_reason(error)}"
        if self._failures >= self._max_failures:
            raise StorageError(
                f"{line} ({self._failures} failures in a row).",
                f"Free disk space for {self.directory}, then resume; older steps are intact.",
            ) from error
        log.error(
            "%s (failure %d of %d); training goes on.", line, self._failures, self._max_failures
        )

    def _drop_orbax(self) -> None:
        """Close the Orbax writer; a new one is made for the next save."""
        writer, self._orbax = self._orbax, None
        if writer is None:
            return
        try:
            writer.close()
        except Exception as error:  # its error was, or will be, reported by `_settle`
            log.debug("closing the checkpoint writer: %s", error)


def _finite_flags(leaves: list[Any]) -> np.ndarray:
    """Tell of each array whether all its values are finite.

    Accelerators look themselves, at the speed of their memory. A CPU looks at the host's copy:
    there is nothing to compile.
    """
    on_devices = jax.process_count() > 1 or jax.default_backend() != "cpu"
    if leaves and on_devices:
        return np.asarray(_all_finite(leaves))
    return np.array([bool(np.isfinite(np.asarray(leaf)).all()) for leaf in leaves], bool)


@jax.jit
def _all_finite(leaves: list[Any]) -> Any:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def _reason(error: Exception | None) -> str:
    """Say in one short line what went wrong."""
    if error is None:
        return "another process failed"
    text = str(error)
    for sign in ("No space left on device", "Permission denied", "Read-only file system"):
        if sign in text:
            return sign[0].lower() + sign[1:]
    return (text.splitlines() or [type(error).__name__])[0][:200]


class _FromOrbax(logging.Filter):
    """Drop Orbax's own lines: what matters in them is reported here in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


_FILTER = _FromOrbax()


def _hush_orbax() -> None:
    logging.getLogger("absl").addFilter(_FILTER)  # adding it twice has no effect

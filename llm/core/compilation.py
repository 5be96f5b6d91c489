# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: keep them between runs, and count them."""

import collections
import functools
import os

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


@functools.cache
def _counter() -> collections.Counter[str]:
    """Start to listen, once in a process."""
    seen: collections.Counter[str] = collections.Counter()

    def note(event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs, details
        seen[event] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    return seen


def count() -> int:
    """Return how many programs this process has made ready since the first call.

    It stands still in a healthy run: a number that grows with the steps means that shapes change.
    Programs read from the cache of an earlier run count as well.
    """
    return _counter()[_COMPILED]


def keep(folder: str) -> None:
    """Keep an accelerator's programs in a folder, so that a run that is started again has them.

    JAX_COMPILATION_CACHE_DIR names another folder, and a CPU compiles for its own model only.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.default_backend() == "cpu":
        return
    jax.config.update("jax_compilation_cache_dir", folder)

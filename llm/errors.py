# SPDX-License-Identifier: Apache-2.0
"""Errors a user can act on, each with the exit code its kind ends a run with."""

from collections.abc import Iterable

LONGEST = 1000  # characters of a problem


class UserError(Exception):
    """State a problem and the next action; printed without a traceback.

    Args:
        problem: what is wrong, naming the key, file or step.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(self, problem: str, fix: str = ""):
        if len(problem) > LONGEST:  # a hostile file may have put anything into it
            problem = f"{problem[: LONGEST - 40]} … ({len(problem)} characters)"
        super().__init__(problem if not fix else f"{problem}\n{fix}")
        self.problem = problem
        self.fix = fix


class ConfigError(UserError):
    """A setting is wrong."""

    exit_code = 2


class DataError(UserError):
    """Input data are missing, empty, corrupt or not the ones expected."""

    exit_code = 3


class NonFiniteError(UserError):
    """Loss or gradients are not finite too often to go on."""

    exit_code = 4


class StorageError(UserError):
    """A file or checkpoint cannot be written, read or trusted."""

    exit_code = 5


class PeerError(UserError):
    """Another process of the run is lost or hangs."""

    exit_code = 6


class Preempted(UserError):
    """The run was told to stop, saved its state, and can be resumed."""

    exit_code = 75


def nearest(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or ""."""
    import difflib

    close = difflib.get_close_matches(str(name)[:LONGEST], list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not one of the known ones.

    Args:
        kind: what the name stands for, such as "filter" or "model.activation".
    """
    names = list(known)
    return ConfigError(
        f"Unknown {kind} {name!r}.{nearest(name, names)}", f"Known: {', '.join(names)}."
    )

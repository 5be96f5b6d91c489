# SPDX-License-Identifier: Apache-2.0
"""Errors a user can act on, each with the exit code its kind ends a run with."""

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

# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal: lines that stay above a bar that moves; plain lines elsewhere."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Screen(NamedTuple):
    """Where a run reports.

    Attributes:
        say: prints one line.
        bar: moves the bar to a number of steps.
    """

    say: Callable[[str], None]
    bar: Callable[[int], None]


def watched(console: Console) -> bool:
    """Tell whether a person watches a terminal on which lines can move.

    A notebook's `!command` is told that it has one, but every line it draws stays.
    """
    return console.is_terminal and "JPY_PARENT_PID" not in os.environ


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def progress(total: int, enabled: bool = True) -> Iterator[Screen]:
    """Show progress over `total` steps; a bar only where a person watches a terminal."""
    if not enabled:
        yield Screen(lambda line: None, lambda done: None)
        return
    console = Console()
    if not watched(console):
        yield Screen(_say, lambda done: None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("training", total=total)
        yield Screen(
            lambda line: shown.console.print(line, highlight=False, markup=False),
            lambda done: shown.update(task, completed=done),
        )

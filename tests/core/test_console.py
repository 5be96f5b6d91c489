# SPDX-License-Identifier: Apache-2.0
"""Bars move on terminals that a person watches, and nowhere else."""

import io

import pytest
from rich.console import Console

from llm.core import console


@pytest.mark.parametrize(
    ("terminal", "notebook", "watched"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_bars_move_for_a_person_only(terminal, notebook, watched, monkeypatch, capsys):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    if notebook:
        monkeypatch.setenv("JPY_PARENT_PID", "1")
    screen = io.StringIO()
    made = Console(file=screen, force_terminal=terminal, width=80)
    assert console.watched(made) == watched
    monkeypatch.setattr(console, "Console", lambda: made)
    with console.progress(4) as shown:
        for step in range(4):
            shown.say(f"step {step}")
            shown.bar(step + 1)
    drawn = screen.getvalue()
    assert ("training" in drawn) == watched
    printed = drawn if watched else capsys.readouterr().out
    assert all(f"step {step}" in printed for step in range(4))

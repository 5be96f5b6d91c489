# SPDX-License-Identifier: Apache-2.0
"""Every one of the 25 faults has tests that exist, and a row in the documentation."""

import ast
import re
from pathlib import Path

import pytest

from tests.faults import rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("row", range(1, 26))
def test_a_row_has_tests(row):
    for name in rows.ROWS[row]:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        assert function in found if function else any(n.startswith("test_") for n in found), name


def test_the_documentation_has_every_row():
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert sorted(rows.ROWS) == list(range(1, 26))
    assert [n for n in numbers if n in rows.ROWS and n > 0][-25:] == list(range(1, 26))

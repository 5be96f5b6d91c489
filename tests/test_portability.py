# SPDX-License-Identifier: Apache-2.0
"""What some of the Pythons that we install on cannot do."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "llm"
POSSESSIVE_GROUP = re.compile(r"(?<!\\)\)(?:[*+?]|\{\d*,?\d*\})\+|\(\?>")


def test_no_possessive_groups():
    """Python 3.11.0 to 3.11.4 match them wrongly (cpython issue 106052)."""
    assert POSSESSIVE_GROUP.search(r"a(?:bc)*+") and not POSSESSIVE_GROUP.search(r"\w*+\)++")
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not POSSESSIVE_GROUP.search(node.value), (file, node.lineno, node.value)

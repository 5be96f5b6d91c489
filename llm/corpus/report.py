# SPDX-License-Identifier: Apache-2.0
"""report."""

from typing import Any


def render(table: dict[str, Any]) -> str:
    return ""

# SPDX-License-Identifier: Apache-2.0
"""The console lines of a corpus run."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def announce(
    console: Console,
    settings: dict[str, Any],
    notes: dict[str, Any],
    shards: int,
    workers: int,
    root: Path,
) -> None:
    """Say what is about to be read, and where it goes."""
    name = settings["source"]["name"]
    console.print(
        f"Corpus [bold]{name}[/bold]: {notes.get('files', shards):,} files in {shards} shards, "
        f"{workers} worker(s) -> {root}"
    )
    missing = notes.get("packages not installed")
    if missing:
        console.print(f"  not installed, left out: {', '.join(missing)}")


def show(console: Console, table: dict[str, Any], root: Path) -> None:
    """Print the funnel, the planted truth and what came out."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("  step", "documents", "MB", "left"):
        grid.add_column(heading, justify="left" if heading == "  step" else "right")
    first = max(table["steps"][0]["documents"], 1)
    for row in table["steps"]:
        share = row["documents"] / first
        grid.add_row(
            f"  {row['step']}", f"{row['documents']:,}", f"{row['bytes'] / 1e6:.2f}", f"{share:.1%}"
        )
    console.print(grid)
    if table["read_errors"]:
        console.print(f"  corrupt records skipped: {table['read_errors']:,}")
    if table["pii"]:
        found = ", ".join(f"{count:,} {name}" for name, count in table["pii"].items())
        console.print(f"  personal data hidden: {found}")
    for kind, score in table["planted"].items():
        console.print(f"  planted {kind}: {planted_line(score)}")
    for split, numbers in table["splits"].items():
        console.print(
            f"  {split}: {numbers['documents']:,} documents, {numbers['bytes'] / 1e6:.2f} MB"
        )
    rate = table["bytes_read"] / 1e6 / max(table["seconds"], 1e-9)
    console.print(
        f"  {table['seconds']:.1f} s ({rate:.1f} MB/s read to written); see {root}/report.html"
    )


def planted_line(score: dict[str, Any]) -> str:
    """Say recall and precision of one planted kind in words."""
    parts = []
    if score.get("recall") is not None:
        parts.append(f"recall {score['recall']:.3f} ({score['hits']}/{score['positives']})")
    if score.get("precision") is not None:
        parts.append(f"precision {score['precision']:.3f} ({score['right']}/{score['found']})")
    return ", ".join(parts) or "none reached the measurement"

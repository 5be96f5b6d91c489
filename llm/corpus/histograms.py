# SPDX-License-Identifier: Apache-2.0
"""Histograms of what rules measured: counted per shard, added up, drawn with the threshold.

Bins are the same for every shard. Where a threshold lies in 0 … 1 the values are shares, in bins of
0.02 (and one for all above 1); others are in bins of an eighth of an octave.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

SHARES = 50  # bins from 0 to 1
OCTAVE = 8  # bins per doubling
COLUMNS = 48  # drawn
CLOSEST = 2  # kept documents shown per rule
WIDTH, HEIGHT, FOOT = 300, 72, 16  # pixels of a drawing


def empty(step: str, threshold: float, sign: int) -> dict[str, Any]:
    """Return a histogram without values; sign 1 asks for at least the threshold, -1 at most."""
    bound = {"step": step, "threshold": float(threshold), "sign": sign}
    return {**bound, "kept": Counter(), "lost": Counter()}


def bins(values: np.ndarray, threshold: float) -> dict[int, int]:
    """Count values into bins: number of the bin -> how many."""
    found = np.maximum(values, 0)
    if _shares(threshold):
        numbers = np.minimum(np.floor(found * SHARES + 1e-9), SHARES)
    else:
        numbers = np.floor(np.log2(found + 1) * OCTAVE + 1e-9)
    numbers, counts = np.unique(numbers.astype(np.int64), return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def closest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the few rows whose value is nearest to the threshold."""
    return sorted(rows, key=lambda row: (abs(row["value"] - row["threshold"]), row["id"]))[:CLOSEST]


def edge(number: float, threshold: float) -> float:
    """Return the value at which a bin begins."""
    if _shares(threshold):
        return number / SHARES
    return 2 ** (number / OCTAVE) - 1


def place(value: float, threshold: float) -> float:
    """Return where a value lies, in bins."""
    if _shares(threshold):
        return min(value, 1 + 1 / SHARES) * SHARES
    return float(np.log2(max(value, 0) + 1) * OCTAVE)


def merge(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Add up the histograms of shards; bins come back from JSON with string keys."""
    merged: dict[str, dict[str, Any]] = {}
    for part in parts:
        for reason, one in part.items():
            fresh = empty(one["step"], one["threshold"], one["sign"])
            whole = merged.setdefault(reason, fresh)
            for side in ("kept", "lost"):
                whole[side].update({int(number): count for number, count in one[side].items()})
    for one in merged.values():
        for side in ("kept", "lost"):
            one[side] = {str(number): one[side][number] for number in sorted(one[side])}
    return merged


def draw(reason: str, histogram: Mapping[str, Any]) -> str:
    """Draw one histogram as SVG: kept and dropped values in two colours, and the threshold."""
    threshold, sign = histogram["threshold"], histogram["sign"]
    sides = {
        side: {int(number): count for number, count in histogram[side].items()}
        for side in ("kept", "lost")
    }
    line = place(threshold, threshold)
    if sign < 0 and not _shares(threshold):
        line = float(int(line) + 1)  # whole numbers: the threshold itself is kept
    numbers = [*sides["kept"], *sides["lost"], int(line)]
    low, high = min(numbers), max(numbers) + 1
    step = max(1, -(-(high - low) // COLUMNS))
    count = -(-(high - low) // step)
    across = WIDTH / count
    columns = {side: _columns(found, low, step, count) for side, found in sides.items()}
    # By square root: what is rare stays visible.
    most = np.sqrt(max((columns["kept"] + columns["lost"]).max(), 1))
    parts = []
    for column in range(count):
        base = 0.0
        for side in ("kept", "lost"):
            top = np.sqrt(columns[side][column] + (columns["kept"][column] if base else 0)) / most
            if not columns[side][column]:
                continue
            tall = max(1.0, (top - base) * HEIGHT)
            parts.append(
                f'<rect class="{side}" x="{column * across:.1f}" '
                f'y="{HEIGHT - base * HEIGHT - tall:.1f}" width="{max(across - 1, 1):.1f}" '
                f'height="{tall:.1f}"></rect>'
            )
            base = top
    at = min(max((line - low) / step * across, 0.5), WIDTH - 0.5)
    parts.append(f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{HEIGHT}"></line>')
    for x, anchor, number in ((0, "start", low), (WIDTH, "end", low + count * step)):
        parts.append(
            f'<text x="{x}" y="{HEIGHT + FOOT - 3}" text-anchor="{anchor}">'
            f"{edge(number, threshold):.3g}</text>"
        )
    total, gone = (sum(map(sum, (s.values() for s in sides.values()))), sum(sides["lost"].values()))
    bound = f"{'at least' if sign > 0 else 'at most'} {threshold:g}"
    said = f"{reason}, {bound}: {gone:,} of {total:,} beyond"
    return (
        f'<figure><figcaption>{escape(reason)} <span class="soft">{bound}; {gone:,} of {total:,} '
        f"beyond</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" aria-label="{escape(said)}">'
        + "".join(parts)
        + "</svg></figure>"
    )


def _columns(counts: Mapping[int, int], low: int, step: int, columns: int) -> np.ndarray:
    sums = np.zeros(columns)
    for number, count in counts.items():
        sums[(number - low) // step] += count
    return sums


def _shares(threshold: float) -> bool:
    return 0 < threshold <= 1

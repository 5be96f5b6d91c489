# SPDX-License-Identifier: Apache-2.0
"""Charts as inline SVG: lines over steps or time, and values with intervals.

Colours come from CSS variables of the page, so that one drawing serves light, dark and print.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

MAX_POINTS = 480  # per line; more cannot be seen at this size


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        label: its name.
        x, y: finite values, x increasing.
        colour: a CSS variable of the page: "a", "b", "c", "d", "e".
        smooth: draw the raw values faintly and a running mean on top.
        dots: mark each point.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "a"
    smooth: bool = False
    dots: bool = False


class Level(NamedTuple):
    """A horizontal reference, such as a baseline or chance."""

    label: str
    y: float


def number(value: float, digits: int = 4) -> str:
    """Write a number shortly: 0.0003, 1.234, 12.3k, 4.56M."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}"
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scaled = value / (1e3 if suffix == "k" else limit)
            return f"{scaled:.3g}{suffix}" if abs(scaled) < 999.5 else f"{scaled:.0f}{suffix}"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:.{digits}g}" if size < 1e3 else f"{value:.0f}"
    return text


def duration(seconds: float) -> str:
    """Write seconds as people say them: 8.2 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.3g}\u00a0s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}\u00a0min\u00a0{rest:02d}\u00a0s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}\u00a0h\u00a0{minutes:02d}\u00a0min"
    days, hours = divmod(hours, 24)
    return f"{days}\u00a0d\u00a0{hours}\u00a0h"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers within [low, high], about as many as wanted."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(wanted, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def time_ticks(high: float, wanted: int = 5) -> tuple[list[float], str]:
    """Return round times in [0, high] seconds and the unit to write them in."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if high >= 2 * size or unit == "s":
            return [t * size for t in ticks(0.0, high / size, wanted)], unit
    return [0.0, high], "s"


UNIT_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0}


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> list[int]:
    """Choose indices to draw: the lowest and highest of each stretch, so that spikes stay."""
    n = len(y)
    if n <= limit:
        return list(range(n))
    chosen = {0, n - 1}
    buckets = limit // 2
    for b in range(buckets):
        span = range(b * n // buckets, max((b + 1) * n // buckets, b * n // buckets + 1))
        chosen.add(min(span, key=lambda i: y[i]))
        chosen.add(max(span, key=lambda i: y[i]))
    return sorted(chosen)


def running_mean(y: Sequence[float], share: float = 0.02) -> list[float]:
    """Smooth a line: average each value with its neighbours, twice, so that no edges appear.

    At the start, where curves are steep, the window shrinks to stay centred; at the end it is cut,
    so that the last value is an average as well.
    """
    n = len(y)
    reach = max(1, round(n * share))
    out = list(y)
    for _ in range(2):
        total = [0.0]
        for value in out:
            total.append(total[-1] + value)
        for i in range(n):
            first, last = max(i - reach, 0), min(i + min(reach, i) + 1, n)
            out[i] = (total[last] - total[first]) / (last - first)
    return out


def value_range(
    lines: Sequence[Line], levels: Sequence[Level], zero: bool = False
) -> tuple[float, float]:
    """Return the y range to show; with `zero` it starts there.

    A falling curve starts far above where it lives: the first steps may leave the frame when
    they would take more than half of it.
    """
    values = [v for line in lines for v in line.y] + [level.y for level in levels]
    low, high = min(values), max(values)
    if zero:
        return 0.0, 1.12 * max(high, 1e-12)
    settled = [v for line in lines for v in line.y[len(line.y) // 12 :]]
    settled += [level.y for level in levels]
    lowest, highest = min(settled), max(settled)
    if len(settled) > 30 and (high - low) > 2.0 * (highest - lowest) > 0:
        high = min(high, highest + 0.25 * (highest - lowest))
        low = max(low, lowest - 0.25 * (highest - lowest))
    if high == low:
        spread = abs(high) * 0.1 or 1.0
        return low - spread, high + spread
    margin = 0.06 * (high - low)
    floor = 0.0 if low >= 0 and low - margin < 0 else low - margin
    return floor, high + margin


class Frame(NamedTuple):
    """The drawing area of a chart and its scales."""

    width: int
    height: int
    x0: float
    x1: float
    y0: float
    y1: float
    left: int = 52
    right: int = 14
    top: int = 12
    bottom: int = 30

    def px(self, x: float) -> float:
        """Return the horizontal pixel of a value."""
        share = (x - self.x0) / (self.x1 - self.x0) if self.x1 > self.x0 else 0.5
        return self.left + share * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        """Return the vertical pixel of a value."""
        share = (y - self.y0) / (self.y1 - self.y0)
        return self.height - self.bottom - share * (self.height - self.bottom - self.top)


def line_chart(
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    *,
    title: str,
    over_time: bool = False,
    zero: bool = False,
    width: int = 560,
    height: int = 250,
) -> str:
    """Draw lines over steps (or seconds); "" when there is nothing to draw.

    Args:
        lines: with finite values; empty ones are left out.
        levels: horizontal references.
        title: read out by screen readers; the page prints its own heading.
        over_time: x is in seconds.
        zero: the y axis starts at zero.
        width, height: of the drawing's own coordinates; the page scales it.
    """
    lines = [line for line in lines if len(line.y)]
    if not lines:
        return ""
    y0, y1 = value_range(lines, levels, zero)
    x_all = [x for line in lines for x in (line.x[0], line.x[-1])]
    near = over_time or min(x_all) < 0.6 * max(x_all) or min(x_all) == max(x_all)
    x0 = 0.0 if near else min(x_all)
    frame = Frame(width, height, x0, max(max(x_all), x0 + 1e-9), y0, y1)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}" {_hover_data(frame, lines, over_time)}>'
    ]
    parts += _axes(frame, over_time)
    inner = (frame.left - 4, frame.top, width - frame.left - frame.right + 8)
    depth = height - frame.top - frame.bottom
    parts.append(  # a nested drawing cuts off what leaves the frame
        f'<svg x="{inner[0]}" y="{inner[1]}" width="{inner[2]}" height="{depth}" '
        f'viewBox="{inner[0]} {inner[1]} {inner[2]} {depth}">'
    )
    for line in lines:
        parts += _draw_line(frame, line)
    parts.append("</svg>")
    for index, level in enumerate(levels):
        parts.append(_draw_level(frame, level, index))
    parts.append('<g class="hover"></g></svg>')
    return "".join(parts)


def _axes(frame: Frame, over_time: bool) -> list[str]:
    parts = []
    for tick in ticks(frame.y0, frame.y1, 4):
        y = frame.py(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{frame.left - 8}" y="{y + 4:.1f}" '
            f'text-anchor="end">{number(tick)}</text>'
        )
    base = frame.height - frame.bottom
    parts.append(
        f'<line class="axis" x1="{frame.left}" x2="{frame.width - frame.right}" '
        f'y1="{base}" y2="{base}"/>'
    )
    wanted = max(3, frame.width // 130)
    if over_time:
        marks, unit = time_ticks(frame.x1, wanted)
        named = [(t, f"{number(t / UNIT_SECONDS[unit])}") for t in marks]
        named[-1] = (named[-1][0], f"{named[-1][1]} {unit}")
    else:
        named = [(t, number(t)) for t in ticks(frame.x0, frame.x1, wanted)]
        named[-1] = (named[-1][0], f"{named[-1][1]} steps")
    taken = float(frame.width) + 40  # from the right: the last label carries the unit
    for value, text in reversed(named):
        x, size = frame.px(value), 6.6 * len(text)
        edge = x + size / 2 > frame.width - 4
        right = x + 8 if edge else x + size / 2
        if right > taken:
            continue
        taken = right - size - 8
        parts.append(
            f'<text class="tick" x="{right if edge else x:.1f}" y="{base + 18}" '
            f'text-anchor="{"end" if edge else "middle"}">{text}</text>'
        )
    return parts


def _path(frame: Frame, x: Sequence[float], y: Sequence[float]) -> str:
    kept = thin(x, y)
    return "M" + "L".join(f"{frame.px(x[i]):.1f} {frame.py(y[i]):.1f}" for i in kept)


def _draw_line(frame: Frame, line: Line) -> list[str]:
    style = f'style="--c:var(--{line.colour})"'
    parts = []
    if line.smooth and len(line.y) >= 40:
        parts.append(f'<path class="raw" {style} d="{_path(frame, line.x, line.y)}"/>')
    if len(line.y) > 1:
        parts.append(f'<path class="line" {style} d="{_path(frame, line.x, smooth(line))}"/>')
    if (line.dots and len(line.y) <= 60) or len(line.y) == 1:
        for x, y in zip(line.x, line.y, strict=True):
            parts.append(
                f'<circle class="dot" {style} cx="{frame.px(x):.1f}" cy="{frame.py(y):.1f}" r="3"/>'
            )
    return parts


def _draw_level(frame: Frame, level: Level, index: int) -> str:
    y = frame.py(level.y)
    return (
        f'<line class="level ref{index + 1}" x1="{frame.left}" x2="{frame.width - frame.right}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
    )


def _hover_data(frame: Frame, lines: Sequence[Line], over_time: bool) -> str:
    """Return the points as an attribute, for the page's cross-hair."""
    data = []
    for line in lines:
        shown = smooth(line)
        kept = thin(line.x, shown, 240)
        data.append(
            {
                "l": line.label,
                "c": line.colour,
                "p": [
                    [
                        round(frame.px(line.x[i]), 1),
                        round(frame.py(shown[i]), 1),
                        duration(line.x[i]) if over_time else number(line.x[i], 6),
                        number(shown[i]),
                    ]
                    for i in kept
                ],
            }
        )
    return f'data-points="{escape(json.dumps(data, separators=(",", ":")))}"'


def legend(lines: Sequence[Line], levels: Sequence[Level] = ()) -> str:
    """Name the lines and levels of a chart, each with its (last) value."""
    items = [
        f'<span class="key" style="--c:var(--{line.colour})">{escape(line.label)} '
        f"<b>{number(smooth(line)[-1])}</b></span>"
        for line in lines
        if len(line.y)
    ]
    items += [
        f'<span class="key ref ref{index + 1}">{escape(level.label)} '
        f"<b>{number(level.y)}</b></span>"
        for index, level in enumerate(levels)
    ]
    return f'<p class="legend">{"".join(items)}</p>' if items else ""


def smooth(line: Line) -> Sequence[float]:
    """Return the values that a line shows: smoothed if it asks for it and is long enough."""
    return running_mean(line.y) if line.smooth and len(line.y) >= 40 else line.y


def interval_bar(
    value: float,
    low: float,
    high: float,
    chance: float | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    width: int = 190,
) -> str:
    """Draw a value with its interval on a scale, and chance as a tick."""
    start, end = limits

    def px(v: float) -> float:
        return 4 + (width - 8) * min(max((v - start) / ((end - start) or 1.0), 0.0), 1.0)

    parts = [
        f'<svg class="interval" viewBox="0 0 {width} 18" width="{width}" height="18" '
        f'role="img" aria-label="{number(value)}">'
        f'<line class="track" x1="4" x2="{width - 4}" y1="9" y2="9"/>'
    ]
    if chance is not None:
        parts.append(
            f'<line class="chance" x1="{px(chance):.1f}" x2="{px(chance):.1f}" y1="2" y2="16"/>'
        )
    parts.append(
        f'<line class="span" x1="{px(low):.1f}" x2="{px(high):.1f}" y1="9" y2="9"/>'
        f'<circle class="value" cx="{px(value):.1f}" cy="9" r="4"/></svg>'
    )
    return "".join(parts)


def bars(rows: Sequence[tuple[str, float, str]], width: int = 640, exact: bool = False) -> str:
    """Draw labelled horizontal bars from zero.

    Args:
        rows: (label, value, colour) from top to bottom.
        width: of the drawing's own coordinates.
        exact: write whole numbers in full.
    """
    rows = [row for row in rows if math.isfinite(row[1])]
    if not rows:
        return ""
    step = 30
    left = min(20 + 7.4 * max(len(label) for label, _, _ in rows), 0.45 * width)
    top = max(value for _, value, _ in rows) or 1.0
    height = step * len(rows) + 6
    parts = [f'<svg class="chart bars" viewBox="0 0 {width} {height}" role="img">']
    for i, (label, value, colour) in enumerate(rows):
        y = 4 + i * step
        length = max((width - left - 110) * value / top, 1.0)
        amount = f"{value:,.0f}".replace(",", "\u2009") if exact else number(value)
        parts.append(
            f'<text class="label" x="{left - 10:.1f}" y="{y + 17}" text-anchor="end">'
            f"{escape(label)}</text>"
            f'<rect class="bar" style="--c:var(--{colour})" x="{left:.1f}" y="{y + 3}" rx="3" '
            f'width="{length:.1f}" height="20"/>'
            f'<text class="amount" x="{left + length + 8:.1f}" y="{y + 17}">'
            f"{amount}</text>"
        )
    parts.append("</svg>")
    return "".join(parts)

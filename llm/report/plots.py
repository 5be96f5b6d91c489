# SPDX-License-Identifier: Apache-2.0
"""The curves of a run as one PNG, for places that show no HTML."""

import io
from collections.abc import Sequence
from typing import Any

from llm import files
from llm.report import charts, sections
from llm.report.reading import Run

COLOURS = {"a": "#2f5fd0", "b": "#d9622b", "c1": "#0e8f83", "d": "#8b4bb8", "e": "#a67c00"}


def write_png(
    run: Run, out: Any, baselines: Sequence[tuple[str, float]] = (), most: int = 6
) -> None:
    """Draw the first charts of a run side by side.

    Args:
        run: the run.
        out: the file to write.
        baselines: (label, bits per byte) to draw as levels.
        most: charts at most.
    """
    chosen = sections.panels(run, baselines)[:most]
    if not chosen:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.0 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for index, panel in enumerate(chosen):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw(axes, panel)
    image = io.BytesIO()
    figure.savefig(image, format="png", facecolor="white", metadata={"Software": None})
    files.write_atomic(out, image.getvalue())


def _draw(axes: Any, panel: sections.Panel) -> None:
    for label, shade, values in panel.parts:
        colour = COLOURS[shade]
        if label == "train" and len(values.values) >= 40 and "rate" not in panel.title:
            axes.plot(values.steps, values.values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(
                values.steps,
                charts.running_mean(values.values),
                color=colour,
                linewidth=1.6,
                label=label,
            )
        else:
            mark = "o" if label != "train" and len(values.values) <= 60 else None
            axes.plot(
                values.steps,
                values.values,
                color=colour,
                linewidth=1.6,
                marker=mark,
                markersize=3.5,
                label=label,
            )
    for level in panel.levels:
        axes.axhline(level.y, color="#777", linewidth=1, linestyle=(0, (5, 4)), label=level.label)
    axes.set_title(panel.title, fontsize=10.5, loc="left", fontweight="bold")
    axes.set_xlabel("step", fontsize=9, color="#555")
    axes.tick_params(labelsize=8.5, colors="#555", length=0)
    axes.grid(axis="y", color="#e6e2dc", linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#999")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useOffset=False)
    if panel.zero:
        axes.set_ylim(bottom=0)
    elif panel.title == "Loss":
        lines = [charts.Line(label, v.steps, v.values) for label, _, v in panel.parts]
        axes.set_ylim(*charts.value_range(lines, panel.levels))
    if len(panel.parts) + len(panel.levels) > 1:
        axes.legend(fontsize=8.5, frameon=False)

# SPDX-License-Identifier: Apache-2.0
"""Numbers as text, round ticks, thinning that keeps spikes, and drawings that are valid XML."""

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from llm.report import charts
from llm.report.charts import Level, Line


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0003, "3e-4"),
        (0.00123456, "0.001235"),
        (1.23456, "1.235"),
        (123.456, "123.5"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (999_999, "1000k"),
        (4_560_000, "4.56M"),
        (7.1e9, "7.1B"),
        (2e13, "20T"),
        (-0.5, "-0.5"),
        (math.nan, "–"),
    ],
)
def test_number(value, text):
    assert charts.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.24 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (280_000, "3 d 5 h")],
)
def test_duration(seconds, text):
    assert charts.duration(seconds).replace("\u00a0", " ") == text


@pytest.mark.parametrize("low,high", [(0, 1), (2.31, 7.64), (0, 600), (-3, 4e-3), (1e-9, 2e-9)])
def test_ticks_are_round_and_inside(low, high):
    found = charts.ticks(low, high, 5)
    span = high - low
    assert 3 <= len(found) <= 11
    assert all(low - 1e-6 * span <= t <= high + 1e-6 * span for t in found)
    assert np.allclose(np.diff(found), found[1] - found[0])


def test_thinning_keeps_every_spike():
    y = [1.0] * 10_000
    y[4321], y[8765] = 50.0, -50.0
    kept = charts.thin(range(10_000), y)
    assert {0, 4321, 8765, 9999} <= set(kept)
    assert len(kept) <= charts.MAX_POINTS + 2


def test_running_mean_keeps_a_line_and_calms_noise():
    flat = charts.running_mean([2.0] * 100)
    assert np.allclose(flat, 2.0)
    noise = np.random.default_rng(0).normal(size=2000)
    assert np.std(charts.running_mean(list(noise))) < 0.2
    steep = list(np.exp(-np.arange(200) / 5))
    assert charts.running_mean(steep)[0] == steep[0]  # no lag where the curve falls


def test_the_first_steps_may_leave_the_frame_only_when_they_would_fill_it():
    settled = [3.0 + 0.001 * i for i in range(200)]
    low, high = charts.value_range([Line("a", range(201), [60.0, *settled])], [])
    assert high < 5
    low, high = charts.value_range([Line("a", range(200), settled)], [])
    assert low < 3.0 and high > settled[-1]
    assert charts.value_range([Line("a", [1], [2.0])], [], zero=True)[0] == 0.0


def test_a_chart_is_xml_with_hover_data_and_escaped_labels():
    line = Line("<b>&\"'", range(100), [1 / (1 + i) for i in range(100)], smooth=True)
    drawing = charts.line_chart([line], [Level("<i>", 0.5)], title="<t>\"'")
    root = ElementTree.fromstring(drawing)
    points = json.loads(root.attrib["data-points"])
    assert points[0]["l"] == line.label
    assert len(points[0]["p"]) == 100
    assert "<b>" not in drawing + charts.legend([line], [Level("<i>", 0.5)]).replace("<b>0", "")
    assert charts.line_chart([Line("a", [], [])], title="none") == ""


@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("end", [0.5, 1, 59, 3601, 1e7])
def test_axis_labels_do_not_overlap(over_time, end):
    line = Line("a", [0.0, end], [1.0, 2.0])
    drawing = charts.line_chart([line], title="t", over_time=over_time, width=350, height=190)
    root = ElementTree.fromstring(drawing)
    base = max(float(t.attrib["y"]) for t in root.iter("text"))
    spans = []
    for text in root.iter("text"):
        if float(text.attrib["y"]) == base:
            x, size = float(text.attrib["x"]), 6.0 * len(text.text)
            spans.append(
                (x - size, x)
                if text.attrib["text-anchor"] == "end"
                else (x - size / 2, x + size / 2)
            )
    spans.sort()
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] <= 352


def test_bars_and_intervals_are_xml_and_stay_inside():
    ElementTree.fromstring(charts.bars([("a & b", 3.0, "a"), ("c", 0.0, "b")]))
    assert charts.bars([("a", math.nan, "a")]) == ""
    root = ElementTree.fromstring(charts.interval_bar(0.5, -1.0, 2.0, chance=0.25))
    xs = [float(v) for e in root.iter() for k, v in e.attrib.items() if k in ("x1", "x2", "cx")]
    assert min(xs) >= 0 and max(xs) <= 190

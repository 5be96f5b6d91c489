# SPDX-License-Identifier: Apache-2.0
"""Histograms against NumPy's, their sums over shards, and what is drawn of them."""

import importlib
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from llm.corpus import documents, histograms, stage


@pytest.mark.parametrize("threshold", [0.3, 1.0, 50, 3.5])
def test_bins_are_where_their_edges_say(threshold):
    values = np.random.default_rng(0).gamma(2.0, 0.2 if threshold <= 1 else 40, 500)
    found = histograms.bins(values, threshold)
    edges = [histograms.edge(number, threshold) for number in range(max(found) + 2)]
    edges[-1] = np.inf
    expected = np.histogram(values, edges)[0]
    assert [found.get(number, 0) for number in range(len(expected))] == expected.tolist()
    for value in (0.1, threshold):
        place = histograms.place(value, threshold)
        assert histograms.edge(place, threshold) == pytest.approx(value)


def test_shards_add_up_and_the_threshold_parts_the_colours():
    parts = []
    for seed in range(3):
        values = np.random.default_rng(seed).random(100)
        one = histograms.empty("rule", 0.4, -1)
        one["kept"].update(histograms.bins(values[values <= 0.4], 0.4))
        one["lost"].update(histograms.bins(values[values > 0.4], 0.4))
        parts.append(json.loads(json.dumps({"x": one})))
    merged = histograms.merge(parts)["x"]
    assert sum(merged["kept"].values()) + sum(merged["lost"].values()) == 300
    drawn = histograms.draw("x", merged)
    line = float(re.search(r'line x1="([\d.]+)"', drawn)[1])
    for kind, x in re.findall(r'class="(kept|lost)" x="([\d.]+)"', drawn):
        assert (float(x) >= line - 0.2) == (kind == "lost")
    assert "at most 0.4" in drawn and "of 300 beyond" in drawn
    nothing = histograms.empty("rule", 0, -1)
    nothing["kept"].update({0: 5})
    assert "0 of 5" in histograms.draw("contaminated", nothing)


def test_a_document_is_judged_by_the_first_broken_check():
    document = {"id": "a", "text": "x", "source": "", "meta": {}}
    checks = (("low", 3, 3, 1), ("high", 4.5, 4, -1), ("never", 0, 1, 1))
    assert documents.judge(document, iter(checks)) == documents.Drop("high", 4.5, 4.0)
    assert document["_checks"] == list(checks)
    assert documents.judge(document, checks[:1]) is document
    assert documents.judge(document, checks[:1], {"id": "b"}) == {"id": "b"}


def test_the_stage_counts_all_documents_that_reach_a_rule(tmp_path):
    config = importlib.import_module("configs.corpus.tiny").get_config()
    result = stage.run(config, str(tmp_path), Console(file=io.StringIO()))
    reached = {row["step"]: row["documents"] for row in result["steps"]}
    before = {"length": reached["normalise"], "gopher_quality": reached["gopher_repetition"],
              "fineweb": reached["gopher_quality"]}  # fmt: skip
    for reason, histogram in result["histograms"].items():
        seen = sum(histogram["kept"].values()) + sum(histogram["lost"].values())
        if histogram["step"] in before:
            assert seen == before[histogram["step"]], reason
        dropped = result["reasons"].get(reason, {}).get("count", 0)
        assert sum(histogram["lost"].values()) >= dropped
        for row in result["borderline"].get(reason, []):
            assert histogram["sign"] * (row["value"] - row["threshold"]) >= 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == len(result["histograms"]) > 15

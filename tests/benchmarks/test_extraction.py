# SPDX-License-Identifier: Apache-2.0
"""The extraction metric on hand-counted texts, and the targets on real pages where they are."""

import os
from pathlib import Path

import pytest

from benchmarks import extraction

PAGES = Path(os.environ.get("EXTRACTION_PAGES", "/nonexistent"))


def test_counts_by_hand():
    # "a b c d", "b c d e" against "b c d e", "c d e f": one right, one too many, one missed.
    assert extraction.counts("a b c d e", "b, c. d e f!") == (1, 1, 1)
    assert extraction.counts("one two", "one two") == (1, 0, 0)  # shorter texts are one run
    assert extraction.counts("a a a a a", "a a a a") == (1, 0, 1)  # a multiset
    assert extraction.counts("", "x y") == (0, 1, 0)


def test_scores_average_over_pages():
    result = extraction.score([(1, 1, 0), (3, 0, 1), (0, 0, 2)])
    assert result.precision == pytest.approx((0.5 + 1) / 2)  # the empty answer has no precision
    assert result.recall == pytest.approx((1 + 0.75 + 0) / 3)
    assert result.f1 == pytest.approx(2 * 0.75 * 7 / 12 / (0.75 + 7 / 12))


@pytest.mark.slow
@pytest.mark.skipif(
    not (PAGES / "ground-truth.json").exists(),
    reason="set EXTRACTION_PAGES to a folder of annotated pages",
)
def test_targets_on_annotated_pages():
    pages = extraction.load(PAGES)
    quality, fast = extraction.run(pages, "quality"), extraction.run(pages, "fast")
    assert quality["f1"] >= 0.975
    assert fast["f1"] >= 0.925
    assert fast["pages_per_s"] >= 5 * quality["pages_per_s"]

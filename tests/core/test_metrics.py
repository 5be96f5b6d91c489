# SPDX-License-Identifier: Apache-2.0
"""Metric files: resumption, torn lines, full disks, means."""

import json

import pytest

from llm.core import metrics
from llm.errors import ConfigError


def test_weighted_mean_leaves_non_finite_values_out():
    parts = [
        {"loss": 1.0, "weight": 1.0},
        {"loss": 3.0, "weight": 3.0},
        {"loss": float("nan"), "weight": 4.0},
    ]
    mean = metrics.weighted_mean(parts, "weight")
    assert mean["loss"] == pytest.approx(2.5) and mean["weight"] == 8


def test_resuming_drops_what_will_be_written_again(tmp_path):
    writer = metrics.Writer(str(tmp_path))
    for step in (1, 2, 3):
        writer.write(step, float(step), {"train/loss": 1.0 / step, "bad": float("inf")})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tra')  # the process died here
    again = metrics.Writer(str(tmp_path), start=2)
    assert again.seconds_before == 3.0, "work that was lost took its time, too"
    again.write(3, 3.5, {"train/loss": 9.0})
    lines = metrics.read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[2]["train/loss"] == 9.0 and lines[0]["bad"] is None
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, caplog):
    writer = metrics.Writer(str(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    writer.write(1, 0.0, {"a": 1.0})
    writer.write(2, 0.0, {"a": 1.0})
    writer.rewind(1)
    assert caplog.text.count("training goes on") == 1


def test_only_the_first_process_writes(tmp_path):
    metrics.Writer(str(tmp_path), enabled=False).write(1, 0.0, {"a": 1.0})
    assert not list(tmp_path.iterdir())


def test_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Unknown tracker 'tensorbord'"):
        metrics.Writer(str(tmp_path), trackers=("tensorbord",))

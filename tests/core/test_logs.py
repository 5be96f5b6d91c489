# SPDX-License-Identifier: Apache-2.0
"""Logs per process: records, bounds, secrets, disks that fail."""

import json
import logging

import pytest

from llm.core import logs


def lines(file):
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_events_and_own_warnings_are_recorded(tmp_path, capsys):
    logs.event("nobody listens", step=1)
    with logs.record(tmp_path, 3) as journal:
        logs.event("save", step=7, seconds=0.5)
        journal.step = 9
        logging.getLogger("llm.core.something").warning("token %s", "hf_abcdefghijklmnop")
        logging.getLogger("foreign").warning("not ours")
    logs.event("over")
    first, second = lines(tmp_path / "logs" / "3.jsonl")
    assert first.pop("time").endswith("Z")
    assert first == {"process": 3, "step": 7, "level": "info", "event": "save", "seconds": 0.5}
    assert second["step"] == 9 and second["level"] == "warning"
    assert "hf_abc" not in json.dumps(second) and "token" in second["message"]
    assert "save" not in "".join(capsys.readouterr())


def test_an_error_on_its_way_out_is_recorded(tmp_path):
    with pytest.raises(ValueError, match="bad"), logs.record(tmp_path):
        raise ValueError("bad thing")
    (found,) = lines(tmp_path / "logs" / "0.jsonl")
    assert (found["event"], found["kind"], found["level"]) == ("error", "ValueError", "error")


def test_files_are_bounded(tmp_path):
    with logs.record(tmp_path, limit=2000):
        for number in range(200):
            logs.event("step", step=number)
    folder = tmp_path / "logs"
    newest, older = lines(folder / "0.jsonl"), lines(folder / "0.1.jsonl")
    assert newest[-1]["step"] == 199 and older[-1]["step"] + 1 == newest[0]["step"]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4000


def test_a_disk_that_fails_is_reported_once(tmp_path, capsys):
    with logs.record(tmp_path):
        (tmp_path / "logs" / "0.jsonl").mkdir(parents=True)
        logs.event("a")
        logs.event("b")
    assert capsys.readouterr().err.count("logs cannot be written") == 1
    (tmp_path / "file").write_text("")
    with logs.record(tmp_path / "file"):
        logs.event("a")

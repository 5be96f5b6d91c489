# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind is read as it is: torn, repeated, resumed, with secrets."""

import json

from llm.report import reading


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_lines_of_a_step_join_and_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "time": 1.0, "train/loss": 5.0},
            {"step": 2, "time": 2.0, "train/loss": 4.0},
            {"step": 2, "time": 2.5, "eval/validation/loss": 4.5},
            {"step": 3, "time": 3.0, "train/loss": 99.0},
            {"step": 4, "time": 4.0, "train/loss": 98.0},
            {"step": 3, "time": 0.5, "train/loss": 3.0},  # resumed from step 2, clock restarted
            {"step": 4, "time": 1.5, "train/loss": 2.0},
        ],
    )
    run = reading.read_run(tmp_path)
    loss = reading.series(run, "train/loss")
    assert loss.steps == [1, 2, 3, 4]
    assert loss.values == [5.0, 4.0, 3.0, 2.0]
    assert loss.times == sorted(loss.times)
    assert reading.series(run, "eval/validation/loss").steps == [2]
    assert reading.metric_names(run) == ["train/loss", "eval/validation/loss"]


def test_broken_files_are_named_and_left_out(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{")
    (tmp_path / "results" / "b.json").write_text('{"metrics": {"acc": 1}}')
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "trai')
    run = reading.read_run(tmp_path)
    assert run.broken == ["a.json", "metrics.jsonl (1 line)"]
    assert run.config == {}
    assert [entry["task"] for entry in run.results] == ["b"]
    assert reading.series(run, "train/loss").values == [2.0]


def test_values_that_are_not_finite_are_counted_not_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": null}\n'
        '{"step": 3, "train/loss": NaN}\n'
    )
    run = reading.read_run(tmp_path)
    assert reading.series(run, "train/loss").values == [2.0]
    assert reading.non_finite(run) == 2


def test_an_absent_folder_is_empty(tmp_path):
    assert reading.read_run(tmp_path / "nothing").empty


def test_secrets_are_hidden_and_settings_are_not(tmp_path):
    config = {"track": {"wandb_api_key": "abcdef"}, "eos_token": "</s>", "max_tokens": 48}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "environment.json").write_text('{"command": "run --x.api_key=abcdef"}', "utf-8")
    run = reading.read_run(tmp_path)
    assert run.config == {"track": {"wandb_api_key": "***"}, "eos_token": "</s>", "max_tokens": 48}
    assert run.artifacts["environment"] == {"command": "run --x.api_key=***"}

# SPDX-License-Identifier: Apache-2.0
"""The checkpoint commands report, compare and export, with the documented exit codes."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from llm.core import checkpoint
from llm.core.checkpoint_tool import main

SCRIPT = Path(__file__).parents[2] / "scripts" / "checkpoint.py"


@pytest.fixture
def run(tmp_path):
    workdir = tmp_path / "run"
    with checkpoint.Checkpointer(workdir / "checkpoints") as writer:
        for step in (1, 2):
            params = {"w": jnp.arange(6.0) * step, "same": jnp.ones(3)}
            tree = {"params": params, "opt_state": {"mu": jnp.zeros(6)}}
            writer.save(step, tree, {"config": "abc"}, {"eval/loss": 1.5 / step})
    (workdir / "config.json").write_text("{}")
    (workdir / "tokenizer").mkdir()
    (workdir / "tokenizer" / "meta.json").write_text("{}")
    return workdir


def damage(workdir, step, entry):
    file = workdir / "checkpoints" / str(step) / entry / "_METADATA"
    file.write_bytes(file.read_bytes()[:-1] + b" ")


def test_ls_names_steps_metrics_and_strangers(run, capsys):
    (run / "checkpoints" / "9").mkdir()
    assert main(["ls", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[0] == "1" and "params, opt_state" in lines[0]
    assert lines[1].endswith("eval/loss=0.75")
    assert "ignored" in lines[2]


def test_verify_reports_each_damaged_file(run, capsys):
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("intact") == 2
    damage(run, 2, "opt_state")
    assert main(["verify", str(run)]) == 5
    out = capsys.readouterr().out
    assert "step 1: intact" in out
    assert "step 2: opt_state/_METADATA has other content" in out
    assert main(["verify", str(run), "--step", "1"]) == 0
    assert main(["verify", str(run), "--step", "4"]) == 5
    assert "no checkpoint of step 4" in capsys.readouterr().err


def test_diff_finds_exactly_what_changed(run, capsys):
    same = ["diff", str(run), str(run)]
    assert main(same) == 0
    assert capsys.readouterr().out == "bitwise equal\n"
    assert main([*same, "--step", "1", "--other_step", "2"]) == 1
    assert capsys.readouterr().out == "params/w: 5 of 6 values differ, by at most 5\n"


def test_diff_of_other_structures(run, tmp_path, capsys):
    with checkpoint.Checkpointer(tmp_path / "b") as writer:
        params = {"w": jnp.arange(6, dtype=jnp.int32), "new": jnp.ones(1), "same": jnp.ones(3)}
        writer.save(1, {"params": params})
    assert main(["diff", str(run), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "opt_state/mu: only in the first",
        "params/new: only in the second",
        "params/w: float32[6] against int32[6]",
        "extra.json: differs",
    ]


def test_export_copies_verified_parameters_config_and_tokenizer(run, tmp_path, capsys):
    damage(run, 2, "opt_state")  # not copied, so it does not matter
    out = tmp_path / "model"
    assert main(["export", str(run), str(out)]) == 0
    assert "step 2" in capsys.readouterr().out
    assert sorted(item.name for item in out.iterdir()) == [
        "checkpoints",
        "config.json",
        "tokenizer",
    ]
    restored = checkpoint.restore(out)
    assert list(restored.tree) == ["params"] and restored.extra == {"config": "abc"}
    np.testing.assert_array_equal(restored.tree["params"]["w"], np.arange(6.0) * 2)
    assert main(["verify", str(out)]) == 0
    assert main(["export", str(run), str(out)]) == 5
    assert main(["export", str(run), str(tmp_path / "m2"), "--entries", "ema"]) == 2
    damage(run, 2, "params")
    assert main(["export", str(run), str(tmp_path / "m3")]) == 0
    assert checkpoint.list_steps(tmp_path / "m3") == [1]


def test_the_script_is_quick_to_answer_and_loads_no_jax(run):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", SCRIPT, "verify", run / "absent"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5
    assert "jax" not in {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "has no checkpoint.\nIt has steps []." in done.stderr
    assert "Traceback" not in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""A random campaign, in small; scripts/soak.py makes long ones."""

import json

import pytest

from tests.faults import soak


def right(records):
    assert not [record for record in records if record["problem"]], records


def test_a_campaign_goes_on_where_it_stopped(tmp_path):
    """One run is made; the second start of the campaign finds it done."""
    right(soak.campaign(tmp_path, 1, seed=1, names=["kill"]))
    said = []
    records = soak.campaign(tmp_path, 1, seed=1, say=said.append)
    assert not said and [(r["fault"], r["codes"]) for r in records] == [("kill", [-9, 0])]
    assert soak.table(records)[-1].split()[:3] == ["all", "1", "1"]


def test_a_wrong_run_is_noticed(tmp_path, monkeypatch):
    """The campaign itself can tell: other examples, other parameters, no recovery."""
    run = soak.Run(tmp_path, "run", None, soak.random.Random(0))
    run.workdir.mkdir()
    lines = [f"{step} {step:x}" for step in range(soak.runs.STEPS)]
    (run.workdir / "examples.txt").write_text("\n".join(lines))
    logged = [{"step": s, "train/loss": 1.0} for s in range(1, soak.runs.STEPS + 1)]
    (run.workdir / "metrics.jsonl").write_text("\n".join(json.dumps(x) for x in logged))
    monkeypatch.setattr(soak, "params_hash", lambda workdir: "a")
    read, run.codes = soak.examples(run.workdir), [-9, 0]
    assert soak.problem(run, ("a", read)) == ""
    assert soak.problem(run, ("b", read)) == "other parameters"
    assert "steps [3]" in soak.problem(run, ("a", {**read, 3: {"x"}}))
    run.codes = [-9, 5]
    assert "not recovered" in soak.problem(run, ("a", read))


@pytest.mark.slow
def test_every_fault_of_the_campaign(tmp_path):
    for number, name in enumerate(soak.FAULTS):
        right(soak.campaign(tmp_path, number + 1, seed=2, names=[name]))

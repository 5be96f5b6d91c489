# SPDX-License-Identifier: Apache-2.0
"""A run goes on with other devices and processes: same bits, same examples, same losses."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest

from llm.core.metrics import read_lines
from tests import runs
from tests.faults import mover

HALF = 4
PLACES = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (8, 2)]  # devices in all, processes
CORNERS = [(1, 1), (8, 1), (4, 2)]


def job(workdir, data, place, stop_after=0):
    return {
        "workdir": str(workdir),
        "data": str(data),
        "devices": place[0],
        "stop_after": stop_after,
    }


def losses(workdir):
    lines = read_lines(workdir / "metrics.jsonl")
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def check(moved, whole):
    """Compare a run that moved in its middle with one that stayed where it was."""
    assert mover.examples(moved) == mover.examples(whole)
    found, wanted = losses(moved), losses(whole)
    assert sorted(found) == sorted(wanted) == list(range(1, mover.STEPS + 1))
    for step, loss in wanted.items():
        assert abs(found[step] - loss) <= 1e-5, f"step {step}"


def forget(workdir):
    """Drop the notes of examples that were read ahead but not trained on."""
    for log in workdir.glob("examples-*.jsonl"):
        lines = log.read_text().splitlines()
        log.write_text("".join(f"{x}\n" for x in lines if json.loads(x)["step"] < HALF))


def test_one_to_eight_devices_and_back(data, tmp_path):
    for place, other in [((1, 1), (8, 1)), ((8, 1), (2, 1))]:
        whole, half = tmp_path / f"whole-{place[0]}", tmp_path / f"half-{place[0]}"
        mover.run(job(whole, data, place))
        mover.run(job(half, data, place, HALF))
        forget(half)
        mover.run(job(half, data, other))
        check(half, whole)


def together(folder, jobs, processes):
    """Do the jobs in one process of eight devices or in two of four."""
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    variables = runs.address(processes)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.mover", str(folder / "jobs.json")],
            cwd=runs.ROOT,
            env=runs.environment(8 // processes, **variables, PROCESS_ID=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]
    for child in children:
        code, output = runs.finish(child, timeout=900)
        assert code == 0, output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("places", [CORNERS, PLACES], ids=["corners", "all"])
def test_every_pair_of_places(data, tmp_path, places):
    """Save under each place, go on under each: 49 pairs of seven places."""
    starts = {1: [], 2: []}
    for place in places:
        name = "{}-{}".format(*place)
        starts[place[1]] += [
            job(tmp_path / "whole" / name, data, place),
            job(tmp_path / "half" / name, data, place, HALF),
        ]
    moves = {1: [], 2: []}
    for here, there in itertools.product(places, places):
        name = "{}-{}-to-{}-{}".format(*here, *there)
        moves[there[1]].append(job(tmp_path / name, data, there))
    for processes, jobs in starts.items():
        together(tmp_path / f"starts-{processes}", jobs, processes)
    for here, there in itertools.product(places, places):
        name = "{}-{}-to-{}-{}".format(*here, *there)
        shutil.copytree(tmp_path / "half" / "{}-{}".format(*here), tmp_path / name)
        forget(tmp_path / name)
    for processes, jobs in moves.items():
        together(tmp_path / f"moves-{processes}", jobs, processes)
    for here, there in itertools.product(places, places):
        name = "{}-{}-to-{}-{}".format(*here, *there)
        check(tmp_path / name, tmp_path / "whole" / "{}-{}".format(*here))
    one = tmp_path / "whole" / "1-1"
    for place in places:
        check(tmp_path / "whole" / "{}-{}".format(*place), one)

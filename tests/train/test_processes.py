# SPDX-License-Identifier: Apache-2.0
"""The training script as several real processes: the same losses, one log, shared checkpoints.

What happens when one of them is lost is in tests/faults/test_peers.py.
"""

import json

import pytest

from llm.core.metrics import read_lines
from tests import runs

EVERY = ("--config.train.log_every=1", "--config.checkpoint.every=0", "--config.train.steps=8")
EVAL = ("--config.train.eval_every=4", "--config.evals.validation.batches=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_documents(tmp_path_factory.mktemp("data") / "documents.jsonl")


def train(workdir, data, *more, **options):
    """Run the script to its end; return what the processes printed."""
    group = runs.start(workdir, data, *EVERY, *EVAL, *more, **options)
    ended = [runs.finish(process) for process in group]
    for code, output in ended:
        assert code == 0, output
    return [output for _, output in ended]


def numbers(workdir):
    """Return {step: {name: value}} of losses and evaluations, each step written once."""
    lines = read_lines(workdir / "metrics.jsonl")
    found = {}
    for line in lines:
        for name in ("train/loss", "eval/validation/nll"):
            if name in line:
                assert name not in found.setdefault(line["step"], {}), "logged twice"
                found[line["step"]][name] = line[name]
    return found


def check_same(one, other):
    assert set(one) == set(other) == set(range(1, 9))
    for step in one:
        assert one[step] == pytest.approx(other[step], rel=1e-5), step


def test_processes_train_as_one_does(data, tmp_path):
    """Four processes train half, two go on; every mesh has an axis that spans processes."""
    train(tmp_path / "one", data)
    run = tmp_path / "run"
    # tensor is the inner axis: pairs of processes hold the same rows.
    mesh = ("--config.mesh.data=2", "--config.mesh.tensor=2", "--config.train.stop_after=4")
    printed = train(run, data, *mesh, processes=4)
    assert ["parameters: " in output for output in printed] == [True, False, False, False]
    mesh = ("--config.mesh.data=2", "--config.mesh.context=2", "--config.mesh.dcn=2")
    printed = train(run, data, *mesh, devices=2, processes=2)
    assert "resuming at step 4" in printed[0]
    check_same(numbers(tmp_path / "one"), numbers(run))
    logs = {path.name for path in (run / "logs").iterdir()}
    assert {f"{i}.jsonl" for i in range(4)} <= logs
    started = [json.loads(line) for line in (run / "logs/0.jsonl").read_text().splitlines()]
    assert [e["processes"] for e in started if e.get("event") == "start"] == [4, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [{"fsdp": 4}, {"stage": 2, "data": 2}, {"context": 4}, {"data": 4, "zero1": "true"}],
    ids=lambda mesh: "-".join(mesh),
)
def test_every_axis_can_span_processes(data, tmp_path, mesh):
    train(tmp_path / "one", data)
    flags = [
        f"--config.{'sharding' if axis == 'zero1' else 'mesh'}.{axis}={size}"
        for axis, size in {"data": 1, **mesh}.items()
    ]
    train(tmp_path / "run", data, *flags, processes=4)
    check_same(numbers(tmp_path / "one"), numbers(tmp_path / "run"))

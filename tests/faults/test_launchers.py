# SPDX-License-Identifier: Apache-2.0
"""What the launchers run, word by word, and how often Slurm's queues a job again."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["python", "scripts/pretrain.py", "--config=c.py", "--config.data.path=a b"]

TPU = """\
gcloud compute tpus tpu-vm scp --recurse --worker=all --zone=us-z llm configs scripts setup.py \
pyproject.toml constraints.txt pod:jax-llm/
gcloud compute tpus tpu-vm ssh pod --worker=all --zone=us-z --command=
  set -e; cd jax-llm; python3 -m venv .venv; . .venv/bin/activate
  pip install -q -c constraints.txt -e '.[tpu]'
  exec python scripts/supervise.py --restarts=20 -- python scripts/pretrain.py --config=c.py \
--config.data.path=a\\ b --distributed
"""
SLURM = """\
srun --kill-on-bad-exit=1 python scripts/supervise.py --restarts=20 -- python scripts/pretrain.py \
--config=c.py --config.data.path=a b --distributed
"""
XPK = """\
xpk workload create --workload=run --cluster=big --tpu-type=v5p-256 --num-slices=2 \
--docker-image=image:1 --max-restarts=3 --restart-on-exit-codes=6,75 --command=python \
scripts/supervise.py --restarts=3 -- python scripts/pretrain.py --config=c.py \
--config.data.path=a\\ b --distributed
"""


def launch(script, *arguments, **variables):
    return subprocess.run(
        ["bash", f"scripts/launch/{script}.sh", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "printed"),
    [
        ("tpu_pod", ["pod", "us-z", "--dry-run", "--", *TRAIN], {}, TPU),
        ("slurm", ["--dry-run", *TRAIN], {}, SLURM),
        (
            "xpk",
            ["run", "big", "v5p-256", "image:1", "--dry-run", "--", *TRAIN],
            {"SLICES": "2", "RESTARTS": "3"},
            XPK,
        ),
    ],
)
def test_the_commands(script, arguments, variables, printed):
    done = launch(script, *arguments, **variables)
    assert done.returncode == 0 and done.stdout == printed, done.stderr


@pytest.mark.parametrize("script", ["tpu_pod", "slurm", "xpk"])
def test_without_a_command_they_say_how_to_use_them(script):
    done = launch(script)
    assert done.returncode != 0 and "usage" in done.stderr


@pytest.mark.parametrize(
    ("code", "before", "queued"),
    [(0, 0, False), (75, 0, True), (6, 1, True), (137, 1, True), (2, 0, False), (75, 2, False)],
)
def test_slurm_queues_again_what_can_go_on(tmp_path, code, before, queued):
    """Stand-ins for srun and scontrol note what they are asked."""
    log = tmp_path / "log"
    for name, status in (("srun", code), ("scontrol", 0)):
        tool = tmp_path / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >>{log}\nexit {status}\n')
        tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(before), "RESTARTS": "2"}
    done = launch("slurm", *TRAIN, PATH=path, **variables)
    lines = log.read_text().splitlines()
    assert done.returncode == code
    assert lines[0].startswith("srun --kill-on-bad-exit=1 python scripts/supervise.py")
    assert (lines[1:] == ["scontrol requeue 7"]) == queued

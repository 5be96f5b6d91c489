# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at twenty random moments of a run with two workers: the next ends with the same bytes.

What was finished before the kill is not made again, so that at most the shard that each worker had
in hand is lost.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from configs.corpus import quickstart
from llm.corpus import stage
if __name__ == "__main__":
    config = quickstart.get_config()
    config.source.kinds = ("docstring",)
    config.source.shards = 8
    config.engine.shard_bytes = 300_000
    config.dedup.repeats.words = 50
    stage.run(config, sys.argv[1])
"""


def start(script, workdir):
    return subprocess.Popen(
        [sys.executable, script, workdir],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def finished(workdir):
    """Return when each finished shard's manifest was written."""
    return {p: p.stat().st_mtime_ns for p in workdir.glob("work/*/[0-9]*.json")}


def output(workdir):
    return {p.name: p.read_bytes() for p in sorted((workdir / "documents").iterdir())}


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    begin = time.perf_counter()
    assert start(script, tmp_path / "whole").wait() == 0
    whole = time.perf_counter() - begin
    expected, shards = output(tmp_path / "whole"), len(finished(tmp_path / "whole"))
    assert shards >= 12
    moments = random.Random(0)
    kills, met = 0, set()
    for number in range(60):
        workdir = tmp_path / str(number)
        process = start(script, workdir)
        try:
            process.wait(moments.uniform(0.1, 1.0) * whole)
            continue  # it was faster than the first
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        kills += 1
        before = finished(workdir)
        met.add(len(before))
        assert start(script, workdir).wait() == 0
        assert output(workdir) == expected
        after = finished(workdir)
        assert len(after) == shards and before.items() <= after.items()
        assert not list(workdir.rglob(".tmp-*"))
        if kills == 20:
            break
    assert kills == 20
    assert len(met) >= 5, met  # the moments lie in different parts of the run
    print(f"\n20 kills of a run of {whole:.1f} s; shards finished before them: {sorted(met)}")

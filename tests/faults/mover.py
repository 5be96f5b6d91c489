# SPDX-License-Identifier: Apache-2.0
"""Training runs on a chosen number of devices, many in one process: mover.py JOBS.json.

A job is {"workdir", "data", "devices", "stop_after"}. With COORDINATOR_ADDRESS, PROCESS_COUNT and
PROCESS_ID in the environment the devices are taken evenly from all processes. Each run notes the
hash of every example it read in `<workdir>/examples-<process>.jsonl`, and where it resumes it
compares the loaded state with the files, bit by bit.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

from llm import files, main
from llm.core import checkpoint, sharding
from llm.core import config as configs
from llm.data import feed
from llm.train import keeper
from tests import runs

STEPS = 8


def settings(job):
    more = (f"--config.train.steps={STEPS}", f"--config.train.stop_after={job['stop_after']}")
    every = ("--config.train.log_every=1", "--config.checkpoint.every=0")
    return runs.command(job["workdir"], job["data"], *more, *every)


@contextlib.contextmanager
def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def some_devices(count):
    """Take `count` devices, as many of each process."""
    share = count // jax.process_count()
    found = [
        [device for device in jax.devices() if device.process_index == process][:share]
        for process in range(jax.process_count())
    ]
    return [device for devices in found for device in devices]


def noting(log):
    """Wrap Feed.batch: note the step and the hash of each example that this process reads."""

    def wrap(read):
        def batch(self, step, *rest):
            rows = read(self, step, *rest)
            examples = [files.hash_bytes(row.tobytes()) for row in rows["tokens"]]
            log.write(json.dumps({"step": step, "examples": examples}) + "\n")
            log.flush()
            return rows

        return batch

    return wrap


def comparing(resume):
    """Wrap Keeper._resume: refuse a state that differs in one bit from what is in the files."""

    def wrapped(self, *arguments):
        state = resume(self, *arguments)
        placed = {"params": state.params, "opt_state": state.opt_state}
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), placed)
        stored = checkpoint.restore(self.directory, target=target).tree
        pairs = zip(jax.tree.leaves(placed), jax.tree.leaves(stored), strict=True)
        for array, wanted in pairs:
            for shard in array.addressable_shards:
                part = np.asarray(wanted)[shard.index]
                assert np.asarray(shard.data).tobytes() == part.tobytes(), "a bit differs"
        return state

    return wrapped


def run(job):
    Path(job["workdir"]).mkdir(parents=True, exist_ok=True)
    name = Path(job["workdir"]) / f"examples-{jax.process_index()}.jsonl"
    make = sharding.make_mesh
    with (
        name.open("a", encoding="utf-8") as log,
        replaced(sharding, "make_mesh", lambda _: lambda sizes: make(sizes, chosen)),
        replaced(feed.Feed, "batch", noting(log)),
        replaced(keeper.Keeper, "_resume", comparing),
    ):
        chosen = some_devices(job["devices"])
        main.pretrain(configs.parse(settings(job), {"workdir": ""}).config, job["workdir"])


def examples(workdir):
    """Return the hashes of every step's global batch, in order; each was read only one way."""
    steps = {}
    for log in sorted(Path(workdir).glob("examples-*.jsonl")):
        for line in log.read_text().splitlines():
            note = json.loads(line)
            steps.setdefault(note["step"], {})[log.name] = note["examples"]
    return {
        step: [example for name in sorted(parts) for example in parts[name]]
        for step, parts in sorted(steps.items())
        if step < STEPS
    }


if __name__ == "__main__":
    if "COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["COORDINATOR_ADDRESS"],
            int(os.environ["PROCESS_COUNT"]),
            int(os.environ["PROCESS_ID"]),
        )
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        run(job)
        print("done", number, flush=True)

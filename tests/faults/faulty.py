# SPDX-License-Identifier: Apache-2.0
"""The tiny configuration with a fault in its data: FAULT=<what>:<step>[:<process>], or none.

    python scripts/pretrain.py --config=tests/faults/faulty.py --workdir=DIR

Not a configuration to train with: tests start it. `hang` stops reading for ever, `fail` raises the
error of missing data, `clock` sets this process's clock back by a day and then on by a year.
EXAMPLES=<file> notes the hash of every batch that is read.
"""

import itertools
import os
import time

from configs.pretrain import tiny
from llm import files
from llm.data import feed
from llm.errors import DataError


def hang():
    time.sleep(10_000)


def fail():
    raise DataError("A shard is gone.", "Bring it back.")


def clock():
    now, jumps = time.time, itertools.chain([-86_400.0, 86_400.0 * 365], itertools.repeat(0.0))
    time.time = lambda: now() + next(jumps)


FAULTS = {"hang": hang, "fail": fail, "clock": clock}


def note(step, rows):
    """Append the step and the hash of its batch to the file of examples, if one is wanted."""
    if os.environ.get("EXAMPLES"):
        digest = files.hash_bytes(b"".join(rows[name].tobytes() for name in sorted(rows)))
        with open(os.environ["EXAMPLES"], "a", encoding="utf-8") as log:
            log.write(f"{step} {digest}\n")


def get_config():
    name, step, *process = (os.environ.get("FAULT") or "none:-1").split(":")
    read = feed.Feed.batch

    def batch(self, number, *rest):
        if number == int(step) and (not process or os.environ["PROCESS_ID"] == process[0]):
            FAULTS[name]()
        rows = read(self, number, *rest)
        note(number, rows)
        return rows

    feed.Feed.batch = batch
    return tiny.get_config()

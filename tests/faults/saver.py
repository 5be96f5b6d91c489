# SPDX-License-Identifier: Apache-2.0
"""A real process that saves in a loop, to be killed: saver.py DIRECTORY SEED [POINT].

Prints `restored N` (or `fresh`) first, then `saved N` as saves are handed over. With a POINT it
kills itself there, at the third step it saves.
"""

import logging
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from llm.core import checkpoint
from llm.core import checkpoint_files as disk


def state_at(step):
    """The state is a pure function of the step, so that a wrong restore shows."""
    generator = np.random.default_rng(step)
    params = {f"w{i}": jnp.asarray(generator.normal(size=(64, 50))) for i in range(4)}
    return {"params": params, "opt_state": {"mu": params["w0"] * 2}, "step": jnp.int32(step)}


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before(module, name, count):
    """Kill this process when a function is called for the count-th time."""
    function, calls = getattr(module, name), []

    def wrapped(*arguments, **options):
        calls.append(name)
        if len(calls) == count:
            die()
        return function(*arguments, **options)

    setattr(module, name, wrapped)


def half_removed(folder, **_):
    """Stand in for shutil.rmtree: remove one file, then die."""
    if folder.name.startswith(".deleting-"):
        next(item for item in folder.rglob("*") if item.is_file()).unlink()
        die()


POINTS = {
    "before_writing": lambda: before(checkpoint.Checkpointer, "_write", 3),
    "between_data_and_manifest": lambda: before(disk, "seal", 3),
    "before_the_name": lambda: before(disk, "_sync_tree", 3),
    "before_deleting": lambda: before(disk, "prune", 3),
    "while_deleting": lambda: setattr(shutil, "rmtree", half_removed),
}


def main(directory, seed, point=None):
    logging.basicConfig(level=logging.WARNING)
    with checkpoint.Checkpointer(directory, keep_last=1) as writer:
        step = 0
        if checkpoint.has_checkpoints(directory):
            restored = writer.restore(target=jax.eval_shape(lambda: state_at(1)))
            step = restored.step
            if not same_bits(restored.tree, state_at(step)) or restored.extra != {"step": step}:
                sys.exit(f"step {step} restored wrongly")
            print("restored", step, flush=True)
        else:
            print("fresh", flush=True)
        if point:
            POINTS[point]()
        while True:
            step += 1
            writer.save(step, state_at(step), {"step": step})
            print("saved", step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

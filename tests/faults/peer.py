# SPDX-License-Identifier: Apache-2.0
"""One process of a two-process run: peer.py ADDRESS INDEX DIRECTORY MODE."""

import logging
import sys
import time

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm.core import checkpoint, signals


def state_at(step):
    """A matrix whose rows live on both processes, and a replicated vector."""
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    full = np.arange(24, dtype=np.float32).reshape(4, 6) + step

    def place(array, spec):
        return jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, spec), lambda index: array[index]
        )

    return {
        "params": {"w": place(full, PartitionSpec("fsdp")), "b": place(full[0], PartitionSpec())}
    }


def same(tree, step):
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(state_at(step)), strict=True)
    return all(
        np.array_equal(x.data, y.data)
        for a, b in pairs
        for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True)
    )


def save(directory):
    with checkpoint.Checkpointer(directory, keep_last=2) as writer:
        for step in (1, 2, 3):
            writer.save(step, state_at(step), {"step": step})
    restored = checkpoint.restore(directory, target=state_at(0))
    print(restored.step, restored.extra, same(restored.tree, restored.step), flush=True)


def restore(directory):
    with checkpoint.Checkpointer(directory) as writer:
        restored = writer.restore(target=state_at(0))
        print(restored.step, same(restored.tree, restored.step), flush=True)
        writer.save(restored.step + 10, state_at(restored.step + 10))
        writer.wait()
    print(checkpoint.list_steps(directory), flush=True)


def loop(directory):
    with signals.watch(jax.process_count()) as stop:
        print("ready", flush=True)
        for step in range(10_000):
            multihost_utils.sync_global_devices(str(step))
            if stop.requested(step):
                print("stopped at", step, flush=True)
                return
            time.sleep(0.02)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
    {"save": save, "restore": restore, "loop": loop}[sys.argv[4]](sys.argv[3])

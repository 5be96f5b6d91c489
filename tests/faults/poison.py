# SPDX-License-Identifier: Apache-2.0
"""Train through the real entry point on data that were tampered with: poison.py PLAN ARGUMENTS…

PLAN is JSON: {"kind": …, "steps": [data steps], "kill": data step or null}.
"""

import contextlib
import inspect
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llm.core import launch
from llm.data.feed import Feed
from llm.train import objective

KINDS = ("weights_nan", "weights_inf", "gradient_nan", "gradient_inf")
ROOT = Path(__file__).resolve().parents[2]


@jax.custom_vjp
def infect(params, flag):
    """Return the parameters; their gradients are multiplied by the flag (1, NaN or infinity)."""
    del flag
    return params


infect.defvjp(
    lambda params, flag: (params, flag),
    lambda flag, grads: (jax.tree.map(lambda g: g * flag, grads), jnp.zeros_like(flag)),
)


def infected(build):
    """Wrap an objective's builder: the column "flag" of a batch gets into the gradients."""

    def builder(model, **options):
        made = build(model, **options)

        def loss(params, frozen, batch, keys):
            rest = {k: v for k, v in batch.items() if k != "flag"}
            if "flag" in batch:
                worst = jnp.max(jnp.where(jnp.isfinite(batch["flag"]), 0, batch["flag"]))
                nan = jnp.isnan(batch["flag"]).any()
                flag = jnp.where(nan, jnp.nan, jnp.where(worst > 0, jnp.inf, 1.0))
                params = infect(params, flag)
            return made.loss(params, frozen, rest, keys)

        return objective.Objective(made.init, loss)

    builder.__signature__ = inspect.signature(build)
    return builder


def tamper(rows, kind, rng):
    """Change a batch in place: one value in one row, or every target."""
    row, column = rng.integers(len(rows["weights"])), rng.integers(rows["weights"].shape[1])
    value = np.nan if kind.endswith("nan") else np.inf
    if kind.startswith("weights"):
        rows["weights"][row, column] = value
    elif kind.startswith("gradient"):
        rows["flag"][row] = value
    else:  # "targets": nothing can be learned from it
        rows["targets"] = rng.integers(0, 250, rows["targets"].shape).astype(np.int32)


@contextlib.contextmanager
def poisoned(kind, steps, kill=None):
    """Tamper with the batches of some data steps; SIGKILL this process when one is read."""
    honest_batch, honest_loss = Feed.batch, objective.cross_entropy

    def batch(self, step, params=None):
        if kill is not None and step >= kill:
            os.kill(os.getpid(), signal.SIGKILL)
        rows = {k: np.array(v) for k, v in honest_batch(self, step, params).items()}
        rows["weights"] = rows["weights"].astype(np.float32)
        if kind.startswith("gradient"):
            rows["flag"] = np.ones((len(rows["weights"]), 1), np.float32)
        if step in steps:
            tamper(rows, kind, np.random.default_rng(step))
        return rows

    Feed.batch = batch
    if kind.startswith("gradient"):
        objective.cross_entropy = infected(honest_loss)
    try:
        yield
    finally:
        Feed.batch, objective.cross_entropy = honest_batch, honest_loss


def arguments(workdir, data, *more):
    """Return the command line of a run that takes a second."""
    return [
        f"--config={ROOT / 'configs/pretrain/tiny.py'}",
        f"--config.data.path={data}",
        "--config.data.length=16",
        "--config.model.n_layers=1",
        "--config.model.d_model=16",
        "--config.model.n_heads=2",
        "--config.model.n_kv_heads=1",
        "--config.model.d_ff=32",
        "--config.train.batch_size=8",
        "--config.train.log_every=5",
        "--config.train.eval_every=0",
        "--config.evals.validation.batches=1",
        "--config.mesh.data=1",
        f"--workdir={workdir}",
        *more,
    ]


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    with poisoned(plan["kind"], plan["steps"], plan["kill"]):
        sys.exit(launch.main("pretrain", sys.argv[2:], {}))

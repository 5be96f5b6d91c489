# SPDX-License-Identifier: Apache-2.0
"""Evaluation while training: the objective's own sums over held-out rows."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.core import shards
from llm.data.rows import pad_batch
from llm.errors import ConfigError
from llm.train.loop import Hook
from llm.train.objective import Objective
from llm.train.settings import Inputs, Settings, keys
from llm.train.step import Frozen, State, full_params

Place = Callable[[Mapping[str, np.ndarray]], Any]


def loss_evaluator(
    objective: Objective,
    dataset: Any,
    place: Place,
    *,
    batch_size: int,
    batches: int = 0,
    share: tuple[int, int] = (0, 1),
) -> Callable[[Any, Any], dict[str, float]]:
    """Build (params, frozen) -> metrics over the first rows of a dataset, in order.

    Args:
        objective: its loss is summed; "nll" also gives perplexity and bits per byte.
        dataset: rows with `take`, `__len__` and a `manifest`.
        place: puts a host batch on the devices.
        batch_size: global rows at a time.
        batches: how many batches; 0 for all rows.
        share: (index, count): which slice of every batch this process reads.
    """

    def sums(params: Any, frozen: Any, batch: Any) -> Any:
        return objective.loss(params, frozen, batch, None)  # no dropout

    compiled = jax.jit(sums)
    rows = len(dataset) if not batches else min(len(dataset), batches * batch_size)
    index, count = share
    local = batch_size // count

    def evaluate(params: Any, frozen: Any) -> dict[str, float]:
        total: Any = None
        for start in range(0, rows, batch_size):
            first = start + index * local
            mine = np.arange(first, max(first, min(first + local, rows)))
            batch = place(pad_batch(dataset.take(mine), local))
            part = compiled(params, frozen, batch)
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        found = {k: float(s) / max(float(w), 1e-6) for k, (s, w) in total.items()}
        # Only classes that occur, in the truth or the answers, have a defined F1.
        scores = [found[k] for k, (_, w) in total.items() if k.startswith("f1_") and float(w)]
        if scores:
            found["macro_f1"] = sum(scores) / len(scores)
        if "nll" in found:
            learned, size = dataset.manifest.get("weight", 0), dataset.manifest.get("bytes_of_text")
            found["perplexity"] = math.exp(min(found["nll"], 700.0))
            if learned and size:
                found["bits_per_byte"] = found["nll"] * learned / size / math.log(2)
        return found

    return evaluate


def _measure(
    objective: Objective, dataset: Any, place: Place, settings: Settings, batches: int, mesh: Any
) -> Callable[[Any, Any], dict[str, float]]:
    """Return what measures held-out data: they themselves where they can, or the objective."""
    if hasattr(dataset, "measure"):
        return lambda params, frozen: dataset.measure(params, batches * settings.batch_size)
    return loss_evaluator(
        objective,
        dataset,
        place,
        batch_size=settings.batch_size,
        batches=batches,
        share=shards.host_share(mesh),
    )


def hooks(
    config: Any, inputs: Inputs, settings: Settings, frozen: Frozen, mesh: Any, place: Place
) -> list[Hook]:
    """Build one hook per entry of config.evals: the objective's loss on held-out rows.

    Held-out data that have a `measure` (of full parameters and a number of items, 0 for all) are
    asked instead.
    """
    hooks = []
    for name, section in config.get("evals", {}).items():
        options = {"split": "validation", "every": 0, "batches": 0, **keys(section)}
        dataset = inputs.splits.get(options["split"])
        if dataset is None:
            known = ", ".join(inputs.splits) or "none"
            raise ConfigError(
                f"config.evals.{name}.split={options['split']!r} has no rows.",
                f"Splits: {known}. Take the evaluation out, or give data with that split.",
            )
        measure = _measure(inputs.objective, dataset, place, settings, options["batches"], mesh)

        def function(
            step: int, state: State, measure: Any = measure, name: str = name
        ) -> dict[str, float]:
            del step
            params = state.ema if settings.ema_decay else state.params
            full = full_params(params, frozen)
            return {f"eval/{name}/{k}": v for k, v in measure(full, frozen.objective).items()}

        hooks.append(Hook(name, function, options["every"] or settings.eval_every))
    return hooks

# SPDX-License-Identifier: Apache-2.0
"""Shares of several sources over a run: weights, temperature, budgets, epoch caps, curriculum.

All of it becomes a list of phases with fixed shares before training, from the sizes of the data and
the length of the run alone; `llm.data.feed` then draws by them as a function of the step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.data import feed
from llm.data.rows import RowDataset
from llm.errors import ConfigError, DataError, unknown

# What config.data.mixture.<name> may say beside the options of the source.
SHARES = ("weight", "max_epochs", "tokens")
# What `plan` is given by others than config.data.mixing.
GIVEN = ("rows", "mixture", "steps", "batch_size", "length", "reserve")


class Phase(NamedTuple):
    """From this step on, sources are drawn in these shares (which add up to 1)."""

    start: int
    shares: dict[str, float]


def make_feed(
    datasets: Mapping[str, RowDataset],
    section: Mapping[str, Any],
    *,
    steps: int,
    seed: int,
    batch_size: int,
    **place: Any,
) -> feed.Feed:
    """Return the feed that config.data describes.

    Args:
        datasets: rows of every source.
        section: config.data; its `mixture`, `mixing` and `epochs` are read.
        steps: of the run.
        seed, batch_size: as for `Feed`.
        place: host_index and host_count.
    """
    options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, **place}
    options["epochs"] = int(section.get("epochs", 0))
    if len(datasets) == 1:
        return feed.Feed(datasets, **options)
    rows = {name: len(dataset) for name, dataset in datasets.items()}
    run = {
        "steps": steps,
        "batch_size": batch_size,
        "length": next(iter(datasets.values())).length,
        **dict(section.get("mixing") or {}),
    }
    reserve = dict.fromkeys(rows, 0)
    for _ in range(8):
        first, *later = plan(rows, section["mixture"], reserve=reserve, **run)
        made = feed.Feed(datasets, first.shares, phases=later, **options)
        over = _over(made.drawn(steps), rows, section["mixture"])
        if not over:
            return made
        # Draws are random within a block: leave a little of the caps to them.
        reserve = {name: count + over.get(name, 0) for name, count in reserve.items()}
    raise ConfigError(
        f"data.mixture.{next(iter(over))}.max_epochs cannot be kept.", "Give it a larger cap or 0."
    )


def _over(
    drawn: Mapping[str, int], rows: Mapping[str, int], mixture: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    """Return by how many draws sources pass their caps."""
    caps = {name: rows[name] * part.get("max_epochs", 0) for name, part in mixture.items()}
    return {n: drawn.get(n, 0) - int(cap) for n, cap in caps.items() if 0 < cap < drawn.get(n, 0)}


def plan(
    rows: Mapping[str, int],
    mixture: Mapping[str, Mapping[str, Any]],
    *,
    steps: int,
    batch_size: int,
    length: int,
    temperature: float = 0.0,
    phases: Mapping[str, Mapping[str, Any]] | None = None,
    reserve: Mapping[str, int] | None = None,
) -> list[Phase]:
    """Turn weights, budgets and caps into the shares of each phase.

    Args:
        rows: rows of each source.
        mixture: name -> {"weight" (1), "tokens": budget of the whole run (0: none), "max_epochs":
            how often a row may come at most (0: any)}. Budgets are kept first; the other sources
            share the rest by weight; what a cap takes from one goes to the others.
        steps, batch_size, length: of the run.
        temperature: 0 takes weights as they are; otherwise they are multiplied by rows to the
            power of 1 / temperature (1: in proportion to size; large: all alike).
        phases: name -> {"start": first step, "weights": {name: weight}, "temperature"}, for a
            curriculum; what a phase does not say stays as in the mixture. Before the first one the
            mixture itself holds.
        reserve: name -> rows by which its cap is lower.

    Raises:
        ConfigError: names, numbers or budgets make no sense.
        DataError: caps leave too little data for the run.
    """
    given = [{"start": 0}, *_ordered(phases or {}, steps)]
    names = list(rows)
    weights = [_weights(names, rows, mixture, part, temperature) for part in given]
    starts = [int(part["start"]) for part in given]
    draws = np.diff([*starts, steps]) * batch_size
    budgets = _budgets(names, mixture, weights, draws, length)
    caps = np.array([_cap(rows[n], mixture.get(n, {}), (reserve or {}).get(n, 0)) for n in names])
    found = []
    for start, rates, count, fixed in zip(starts, weights, draws.tolist(), budgets, strict=True):
        if not count:
            continue
        shares = _shares(names, rates, fixed, caps / count)
        caps = caps - shares * count
        found.append(Phase(start, dict(zip(names, shares.tolist(), strict=True))))
    return found


def _ordered(phases: Mapping[str, Mapping[str, Any]], steps: int) -> list[dict[str, Any]]:
    known = ("start", "weights", "temperature")
    for name, part in phases.items():
        for key in part:
            if key not in known:
                raise unknown(f"option of data.mixing.phases.{name}", key, known)
        if not 0 <= part.get("start", -1) < steps:
            raise ConfigError(
                f"data.mixing.phases.{name}.start is {part.get('start')}.",
                f"Give the step it begins with, from 0 to {steps - 1}.",
            )
    ordered = sorted((dict(part) for part in phases.values()), key=lambda part: part["start"])
    starts = [part["start"] for part in ordered]
    if len(set(starts)) < len(starts):
        raise ConfigError("Two of data.mixing.phases begin with the same step.", "Part them.")
    return ordered


def _weights(
    names: Sequence[str],
    rows: Mapping[str, int],
    mixture: Mapping[str, Mapping[str, Any]],
    phase: Mapping[str, Any],
    temperature: float,
) -> np.ndarray:
    own = phase.get("weights", {})
    for name in own:
        if name not in rows:
            raise unknown("dataset of data.mixing.phases", name, names)
    heat = phase.get("temperature", temperature)
    if heat < 0:
        raise ConfigError(f"data.mixing.temperature is {heat}.", "Use 0 or more.")
    found = np.array([float(own.get(n, mixture.get(n, {}).get("weight", 1.0))) for n in names])
    if not np.isfinite(found).all() or (found < 0).any():
        raise ConfigError(f"Weights of data.mixture are {found.tolist()}.", "Use 0 or more.")
    if heat:
        found = found * np.array([rows[name] for name in names], float) ** (1 / heat)
    return found


def _budgets(
    names: Sequence[str],
    mixture: Mapping[str, Mapping[str, Any]],
    weights: Sequence[np.ndarray],
    draws: np.ndarray,
    length: int,
) -> list[np.ndarray]:
    """Return the fixed shares per phase; a budget is spread over the phases that use its source."""
    fixed = np.zeros((len(weights), len(names)))
    for i, name in enumerate(names):
        tokens = mixture.get(name, {}).get("tokens", 0)
        used = np.array([rates[i] > 0 for rates in weights])
        if tokens < 0 or (tokens and not used.any()):
            raise ConfigError(f"data.mixture.{name}.tokens is {tokens}.", "Check it and weight.")
        if tokens:
            fixed[used, i] = tokens / (draws[used].sum() * length)
    total = fixed.sum(axis=1)
    if (total > 1 + 1e-9).any():
        raise ConfigError(
            f"The budgets of data.mixture ask for {total.max():.2f} times the tokens of the run.",
            f"Lower tokens, or train for more than {int(draws.sum()) * length:,} tokens.",
        )
    return list(fixed)


def _cap(rows: int, part: Mapping[str, Any], reserve: int) -> float:
    epochs = part.get("max_epochs", 0)
    if epochs < 0:
        raise ConfigError(f"max_epochs of data.mixture is {epochs}.", "Use 0 for any number.")
    return max(0.0, rows * epochs - reserve) if epochs else np.inf


def _shares(
    names: Sequence[str], rates: np.ndarray, fixed: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """Keep fixed shares and caps, and give the rest to the others in proportion to their rates."""
    shares = np.minimum(fixed, most)
    free = (fixed == 0) & (rates > 0)
    while free.any():
        left = max(0.0, 1 - shares[~free].sum())
        shares[free] = left * rates[free] / rates[free].sum()
        over = free & (shares > most)
        if not over.any():
            break
        shares[over] = most[over]
        free &= ~over
    missing = 1 - shares.sum()
    if missing > 1e-9:
        low = ", ".join(n for n, s, m in zip(names, shares, most, strict=True) if s >= m) or "all"
        raise DataError(
            f"The mixture gives only {shares.sum():.1%} of a phase's tokens (at its limit: {low}).",
            "Raise max_epochs or tokens, add data, or train for fewer steps.",
        )
    return shares / shares.sum()

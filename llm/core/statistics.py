# SPDX-License-Identifier: Apache-2.0
"""Estimates with their uncertainty: means, ratios, proportions. NumPy only."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float
    stderr: float

    def metric(self, **more: Any) -> dict[str, Any]:
        """Return the estimate as an entry of a results file."""
        return {"value": self.value, "stderr": self.stderr, **more}


def mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """Estimate a mean; the error is the sample deviation (Bessel) over the root of n.

    Args:
        values: [n], at least one. With a single value the error is not known: nan.
    """
    array = np.asarray(values, np.float64)
    if array.size == 1:
        return Estimate(float(array[0]), float("nan"))
    return Estimate(float(array.mean()), float(array.std(ddof=1) / np.sqrt(array.size)))


def ratio(numerators: Sequence[float] | np.ndarray, denominators: Any) -> Estimate:
    """Estimate sum(numerators) / sum(denominators) over independent items.

    The error is the linearised (delta-method) one: with residuals e_i = a_i - r * b_i it is
    sqrt(n / (n - 1) * sum e_i^2) / sum b_i (Cochran, Sampling Techniques, chapter 6).

    Args:
        numerators: [n].
        denominators: [n], positive sum.
    """
    top = np.asarray(numerators, np.float64)
    bottom = np.asarray(denominators, np.float64)
    value = float(top.sum() / bottom.sum())
    if top.size == 1:
        return Estimate(value, float("nan"))
    residual = top - value * bottom
    spread = np.sqrt(top.size / (top.size - 1) * np.square(residual).sum())
    return Estimate(value, float(spread / bottom.sum()))


def exponential(estimate: Estimate) -> Estimate:
    """Return exp of an estimate, the error carried through its derivative."""
    value = float(np.exp(estimate.value))
    return Estimate(value, value * estimate.stderr)


def perplexity(loss: Estimate) -> dict[str, Any]:
    """Return the results entry of exp(loss), with the interval of the loss: always positive."""
    reach = NormalDist().inv_cdf(0.975) * loss.stderr
    interval = [float(np.exp(loss.value + side * reach)) for side in (-1, 1)]
    return exponential(loss).metric(interval=interval)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion.

    Source: E. B. Wilson (1927), Journal of the American Statistical Association 22, 209-212.

    Args:
        successes: between 0 and n.
        n: trials; with none the interval is (0, 1).
        confidence: two-sided.
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact limits are 0 and 1; rounding must not move them.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return low, high


def proportion(hits: Sequence[bool] | np.ndarray, chance: float | None = None) -> dict[str, Any]:
    """Return a proportion's results entry: value, stderr, 95 % interval, and the chance level.

    `above_chance` is true where the whole interval lies above the chance level.
    """
    array = np.asarray(hits, np.float64)
    low, high = wilson(int(array.sum()), array.size)
    entry = mean(array).metric(interval=[low, high])
    if chance is not None:
        entry.update(chance=chance, above_chance=low > chance)
    return entry

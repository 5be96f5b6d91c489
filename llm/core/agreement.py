# SPDX-License-Identifier: Apache-2.0
"""How far several judges agree beyond chance: Cohen's and Fleiss' kappa. NumPy only."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np


def cohen(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Return Cohen's kappa of two judges on the same items: 1 is agreement, 0 what chance gives.

    Source: J. Cohen (1960), Educational and Psychological Measurement 20, 37-46.

    Args:
        first, second: a category per item, in one order.

    Returns:
        Not a number where it is not defined: no item, or both always said the same one thing.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} judgements")
    if not first:
        return math.nan
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    expected = sum(
        (list(first).count(c) / n) * (list(second).count(c) / n) for c in {*first, *second}
    )
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


def fleiss(counts: Sequence[Sequence[int]] | np.ndarray) -> float:
    """Return Fleiss' kappa of any number of judges.

    Source: J. L. Fleiss (1971), Psychological Bulletin 76, 378-382. Items may have different
    numbers of judges: an item's agreement is the share of its pairs of judges that agree, and the
    categories' shares are over all judgements. With equal numbers this is Fleiss' own.

    Args:
        counts: [items, categories], how many judges chose each; items with fewer than two are
            left out.
    """
    table = np.asarray(counts, np.float64).reshape(len(counts), -1)
    table = table[table.sum(axis=1) >= 2]
    if not table.size:
        return math.nan
    judges = table.sum(axis=1)
    agreeing = (table * (table - 1)).sum(axis=1) / (judges * (judges - 1))
    shares = table.sum(axis=0) / table.sum()
    expected = float(np.square(shares).sum())
    if math.isclose(expected, 1.0):
        return math.nan
    return (float(agreeing.mean()) - expected) / (1 - expected)


def report(judgements: Mapping[str, Mapping[Hashable, Hashable]]) -> dict[str, Any]:
    """Compare judges that have seen some of the same items.

    Args:
        judgements: judge -> item -> category.

    Returns:
        {"items" (with two judges or more), "fleiss", "agreement" (share of equal pairs),
        "pairs": [{"judges", "items", "agreement", "cohen"}]}; None where not defined.
    """
    names = sorted(judgements)
    pairs: list[dict[str, Any]] = []
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            both = sorted(set(judgements[one]) & set(judgements[other]), key=str)
            if not both:
                continue
            first = [judgements[one][item] for item in both]
            second = [judgements[other][item] for item in both]
            same = sum(a == b for a, b in zip(first, second, strict=True))
            pair: dict[str, Any] = {"judges": [one, other], "items": len(both)}
            kappa = _known(cohen(first, second))
            pairs.append({**pair, "agreement": same / len(both), "cohen": kappa})
    items = sorted({item for found in judgements.values() for item in found}, key=str)
    categories = sorted({c for found in judgements.values() for c in found.values()}, key=str)
    counts = [
        [sum(found.get(item) == c for found in judgements.values()) for c in categories]
        for item in items
    ]
    compared = [row for row in counts if sum(row) >= 2]
    total = sum(pair["items"] for pair in pairs)
    agreeing = sum(pair["agreement"] * pair["items"] for pair in pairs)
    return {
        "items": len(compared),
        "agreement": agreeing / total if total else None,
        "fleiss": _known(fleiss(compared)) if compared else None,
        "pairs": pairs,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

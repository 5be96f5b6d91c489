# SPDX-License-Identifier: Apache-2.0
"""Strengths of players from games between two of them: Bradley–Terry. NumPy only."""

from collections.abc import Sequence

import numpy as np

SCALE = 400 / np.log(10)  # points per unit of log-odds: 400 points win 10 to 1
MIDDLE = 1000.0


def bradley_terry(
    players: int,
    games: Sequence[tuple[int, int, float]] | np.ndarray,
    prior: float = 0.5,
    rounds: int = 100,
) -> np.ndarray:
    """Return ratings [players] around 1000, under which the games are most likely.

    P(a beats b) = 1 / (1 + 10^((R_b - R_a) / 400)) (Bradley & Terry, 1952). The likelihood of the
    log-strengths is concave; Newton's steps climb it.

    Args:
        players: how many.
        games: (a, b, score of a): 1 won, 0 lost, 0.5 a tie.
        prior: ties that every player is given against one of middle strength: ratings stay finite
            where somebody never lost or nobody joins two groups. 0 for none.
        rounds: Newton steps at most.
    """
    table = np.asarray(games, np.float64).reshape(-1, 3)
    first, second = table[:, 0].astype(int), table[:, 1].astype(int)
    wins = np.bincount(first, table[:, 2], players) + np.bincount(second, 1 - table[:, 2], players)
    met = np.zeros((players, players))
    np.add.at(met, (first, second), 1.0)
    met += met.T
    strength = np.zeros(players)
    for _ in range(rounds):
        chance = _logistic(strength[:, None] - strength[None, :])
        middle = _logistic(strength)
        slope = wins - (met * chance).sum(axis=1) + prior * (0.5 - middle)
        curve = -met * chance * (1 - chance)
        np.fill_diagonal(curve, curve.diagonal() - curve.sum(axis=1))
        curve += np.diag(prior * middle * (1 - middle))
        # Without a prior the sum of the strengths is free: the least step leaves it alone.
        step = np.clip(np.linalg.lstsq(curve, slope, rcond=1e-12)[0], -2.0, 2.0)
        strength += step
        if np.abs(step).max() < 1e-10:
            break
    return MIDDLE + SCALE * (strength - strength.mean())


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


def intervals(
    players: int,
    games: Sequence[tuple[int, int, float]],
    groups: Sequence[int],
    rounds: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Return the 95 % bootstrap intervals of ratings: [players, 2].

    Args:
        players, games: as for `bradley_terry`.
        groups: of each game; games of one group (one prompt) are drawn together.
        rounds: resamples.
        seed: of the resampling.
    """
    table, group = np.asarray(games, np.float64), np.asarray(groups)
    members = [np.flatnonzero(group == one) for one in np.unique(group)]
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(rounds):
        chosen = generator.integers(0, len(members), len(members))
        rows = np.concatenate([members[i] for i in chosen])
        draws.append(bradley_terry(players, table[rows]))
    return np.percentile(np.asarray(draws), [2.5, 97.5], axis=0).T

# SPDX-License-Identifier: Apache-2.0
"""Bradley–Terry against closed forms, the equations of the maximum, and known strengths."""

import numpy as np
import pytest

from llm.core import ratings

TRUE = np.asarray([1200.0, 1050.0, 950.0, 800.0])


def chance(a, b):
    return 1 / (1 + 10 ** ((b - a) / 400))


def play(generator, rounds):
    """Return games and their groups: everybody against everybody in each group."""
    games, groups = [], []
    for group in range(rounds):
        for a in range(4):
            for b in range(a + 1, 4):
                games.append((a, b, float(generator.random() < chance(TRUE[a], TRUE[b]))))
                groups.append(group)
    return games, groups


def test_two_players_have_a_closed_form():
    found = ratings.bradley_terry(2, [(0, 1, 1), (1, 0, 0), (0, 1, 1), (0, 1, 0)], prior=0)
    assert found[0] - found[1] == pytest.approx(400 * np.log10(3), abs=1e-6)
    assert found.mean() == pytest.approx(1000)
    ties = ratings.bradley_terry(2, [(0, 1, 0.5)] * 4, prior=0)
    assert ties == pytest.approx([1000, 1000])


def test_expected_wins_are_the_wins():
    games, _ = play(np.random.default_rng(0), 50)
    found = ratings.bradley_terry(4, games, prior=0)
    wins, expected = np.zeros(4), np.zeros(4)
    for a, b, score in games:
        wins[[a, b]] += (score, 1 - score)
        expected[[a, b]] += (chance(found[a], found[b]), chance(found[b], found[a]))
    assert np.abs(wins - expected).max() < 1e-6


def test_who_never_lost_stays_finite():
    found = ratings.bradley_terry(3, [(0, 1, 1)] * 5 + [(1, 2, 1)] * 5)
    assert np.isfinite(found).all() and found[0] > found[1] > found[2]


def test_intervals_cover_known_ratings():
    generator, covered = np.random.default_rng(1), []
    for _ in range(20):
        games, groups = play(generator, 60)
        reach = ratings.intervals(4, games, groups, rounds=100)
        covered += list((reach[:, 0] <= TRUE) & (reach[:, 1] >= TRUE))
    assert np.mean(covered) > 0.85  # nominally 0.95, of 20 x 4 intervals


def test_many_games_give_the_strengths():
    games, _ = play(np.random.default_rng(2), 3000)
    assert np.abs(ratings.bradley_terry(4, games) - TRUE).max() < 15

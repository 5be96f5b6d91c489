# SPDX-License-Identifier: Apache-2.0
"""Random batches on which losses of post-training are compared, by number. Pure NumPy."""

import numpy as np

BATCHES = 100
B, T, V = 4, 6, 11  # answers of a side, positions, vocabulary
DIRECTIONS = 8
PATH = "posttrain_losses.npz"

# Case -> (objective, its options). What the other library runs for it: see make_posttrain.py.
PAIRS = {
    "dpo": ("dpo", {"beta": 0.3}),
    "cdpo": ("dpo", {"beta": 0.3, "label_smoothing": 0.2}),
    "robust": ("dpo", {"loss": "robust", "label_smoothing": 0.2}),
    "hinge": ("dpo", {"loss": "hinge"}),
    "exo": ("dpo", {"loss": "exo", "label_smoothing": 0.1}),
    "nca": ("dpo", {"loss": "nca"}),
    "bco": ("dpo", {"loss": "bco"}),
    "sppo": ("dpo", {"loss": "sppo"}),
    "apo_zero": ("dpo", {"loss": "apo_zero"}),
    "apo_down": ("dpo", {"loss": "apo_down"}),
    "discopop": ("dpo", {"loss": "discopop"}),
    "dpo_mean": ("dpo", {"average": True, "beta": 0.5}),
    "ipo": ("ipo", {"beta": 0.4}),
    "ipo_sum": ("ipo", {"beta": 0.4, "average": False}),
    "cpo": ("cpo", {"beta": 0.2, "sft_weight": 0.7, "sft_mean": "tokens"}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 1.2}),
    "orpo": ("orpo", {"beta": 0.25, "sft_mean": "tokens"}),
}
SINGLES = {
    "kto": {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.8},
    "kto_no_kl": {"beta": 0.3, "kl": False},
}
REWARDS = {"reward": {}, "reward_margin_centre": {"centre": 0.05, "margin": 1.0}}
DIVERGENCES = {
    "forward": {"beta": 0.0, "temperature": 1.0},
    "reverse": {"beta": 1.0, "temperature": 1.0},
    "jsd": {"beta": 0.5, "temperature": 1.0},
    "gjsd": {"beta": 0.1, "temperature": 1.7},
}


def batch(number: int) -> dict[str, np.ndarray]:
    """Return logits of 2B answers and of a reference, ids, and what counts.

    Every third batch has a pair without any answer, which must count for nothing. Answers 0..B-1
    are the chosen ones, B..2B-1 the rejected.
    """
    rng = np.random.default_rng(number)
    size = rng.integers(3, T + 1, 2 * B)
    start = rng.integers(0, 2, 2 * B)
    inside = np.arange(T) < size[:, None]
    real = np.pad(inside[:, 1:], ((0, 0), (0, 1)))  # the last token has no target
    weights = real & (np.arange(T) >= start[:, None])
    if number % 3 == 0:
        row = rng.integers(B)
        weights[[row, row + B]] = False
        real[[row, row + B]] = False
        inside[[row, row + B]] = False
    logits = rng.normal(size=(2 * B, T, V)) * 2
    return {
        "logits": logits.astype(np.float32),
        "reference": (logits + rng.normal(size=logits.shape)).astype(np.float32),
        "targets": rng.integers(0, V, (2 * B, T)).astype(np.int32),
        "weights": weights.astype(np.float32),
        "inside": inside.astype(np.int32),
        "real": real.astype(np.int32),
        "desirable": rng.permutation(np.arange(2 * B) < B + rng.integers(-1, 2)),
        "kl_order": np.roll(np.arange(2 * B), 1),
        "scores": rng.normal(size=(2, B)).astype(np.float32) * 2,
        "margins": rng.uniform(0, 2, B).astype(np.float32),
    }


def project(number: int, gradient: np.ndarray) -> np.ndarray:
    """Return the norm of a gradient and its products with fixed random directions.

    The difference of two products is as large as the difference of the gradients, on average.
    """
    gradient = np.asarray(gradient, np.float64).ravel()
    directions = np.random.default_rng(10_000 + number).normal(size=(DIRECTIONS, gradient.size))
    return np.concatenate([[np.linalg.norm(gradient)], directions @ gradient])


# Trajectories: a tiny Llama with the seeded weights of hf_cases.CASES["llama"] is trained.
STEPS, ROWS, LENGTH = 50, 4, 16
OPTIMIZER = {"peak": 2e-3, "b1": 0.9, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.05, "clip": 1.0}
BETA = 0.2
TRAJECTORIES = "posttrain_trajectories.npz"


def pair(number: int) -> tuple[list[int], list[int], list[int]]:
    """Return a prompt and two answers, as ids: the better one counts on from the prompt's last."""
    rng = np.random.default_rng(50_000 + number)
    prompt = rng.integers(3, 60, rng.integers(2, 6)).tolist()
    length = int(rng.integers(3, 9))
    good = [(prompt[-1] - 3 + 1 + i) % 60 + 3 for i in range(length)]
    bad = rng.integers(3, 63, int(rng.integers(3, 9))).tolist()
    return prompt, [*good, 2], [*bad, 2]


def side(number: int, which: int) -> dict[str, np.ndarray]:
    """Return the row of one answer (1 good, 2 bad): tokens, targets, weights, segments."""
    prompt, *answers = pair(number)
    ids = prompt + answers[which - 1]
    row = {name: np.zeros(LENGTH, np.int32) for name in ("tokens", "targets", "segments")}
    row["tokens"][: len(ids)] = ids
    row["targets"][: len(ids) - 1] = ids[1:]
    row["segments"][: len(ids)] = 1
    row["weights"] = np.zeros(LENGTH, np.float32)
    row["weights"][len(prompt) - 1 : len(ids) - 1] = 1
    row["positions"] = np.arange(LENGTH, dtype=np.int32)
    return row

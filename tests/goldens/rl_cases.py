# SPDX-License-Identifier: Apache-2.0
"""Random batches for policy losses, drawn by name, and the cases that TRL computed."""

import zlib

import numpy as np

ROWS, LENGTH, VOCABULARY = 4, 6, 5
BATCHES = 100
WHOLE = 10  # batches whose gradient is stored whole; of the others, projections
DIRECTIONS = 6
PLAIN = {"clip_low": 0.2, "clip_high": 0.2}

# name -> our loss and options; TRL's loss_type; KL coefficient (k3) in the loss
CASES = {
    "grpo": {"loss": "grpo", "trl": "grpo", "coef": 0.0, "options": PLAIN},
    "grpo_kl_entropy": {
        "loss": "grpo",
        "trl": "grpo",
        "coef": 0.04,
        "options": {**PLAIN, "entropy": 0.02},
    },
    "bnpo": {"loss": "bnpo", "trl": "bnpo", "coef": 0.0, "options": PLAIN},
    "dr_grpo": {"loss": "dr_grpo", "trl": "dr_grpo", "coef": 0.0, "options": PLAIN},
    "dapo": {
        "loss": "dapo",
        "trl": "dapo",
        "coef": 0.1,
        "correction": True,
        "options": {"clip_low": 0.2, "clip_high": 0.28, "cap": 1.5},
    },
    "cispo": {
        "loss": "cispo",
        "trl": "cispo",
        "coef": 0.0,
        "options": {"clip_low": 0.2, "clip_high": 1.3},
    },
    "gspo": {
        "loss": "gspo",
        "trl": "grpo",
        "trl_level": "sequence",
        "coef": 0.0,
        "options": {"clip_low": 0.03, "clip_high": 0.04},
    },
    "rloo": {"loss": "rloo", "trl": "rloo", "coef": 0.0, "options": PLAIN},
    "reinforce_pp": {"loss": "bnpo", "trl": "bnpo", "coef": 0.0, "options": PLAIN, "tokens": True},
    "ppo": {
        "loss": "ppo",
        "coef": 0.0,
        "tokens": True,
        "options": {**PLAIN, "value_clip": 0.2, "value_weight": 0.1},
    },
}

ADVANTAGES = {
    "ppo_advantages": {
        "trl_options": {
            "kl_coef": 0.05,
            "kl_estimator": "k1",
            "whiten_rewards": False,
            "gamma": 1.0,
            "lam": 0.95,
        },
        "kl": "k1",
        "options": {"gamma": 1.0, "lam": 0.95, "place": "after"},
    },
    "ppo_advantages_whitened": {
        "trl_options": {
            "kl_coef": 0.2,
            "kl_estimator": "k3",
            "whiten_rewards": True,
            "gamma": 0.9,
            "lam": 0.8,
        },
        "kl": "k3",
        "options": {"gamma": 0.9, "lam": 0.8, "place": "after", "whiten_rewards": True},
    },
}


def generator(*names):
    return np.random.default_rng(zlib.crc32("/".join(map(str, names)).encode()))


def batch(name, index, filled=False):
    """Draw one batch: float64 arrays; answers begin at 0, a third of the batches has an empty one.

    Args:
        name, index: of the case and the batch; they seed the draw.
        filled: no empty answers.
    """
    rng = generator(name, index)
    logits = 2 * rng.standard_normal((ROWS, LENGTH, VOCABULARY))
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    lengths = rng.integers(1, LENGTH + 1, ROWS)
    if index % 3 == 0 and not filled:
        lengths[index % ROWS] = 0
    value_mask = np.arange(LENGTH) < lengths[:, None] + 1
    mask = np.arange(LENGTH) < lengths[:, None]
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    logps = np.take_along_axis(logps, tokens[..., None], -1)[..., 0]
    old = logps + 0.3 * rng.standard_normal(logps.shape)
    values = rng.standard_normal(logps.shape)
    advantages = rng.standard_normal(ROWS)
    token_advantages = rng.standard_normal(logps.shape)
    if name == "reinforce_pp":
        advantages = token_advantages
    return {
        "logits": logits,
        "tokens": tokens,
        "mask": mask.astype(np.float64),
        "value_mask": value_mask.astype(np.float64),
        "old_logps": old,
        "ref_logps": old + 0.3 * rng.standard_normal(logps.shape),
        "advantages": advantages,
        "token_advantages": token_advantages,
        "share": np.full(ROWS, rng.uniform(2, 5)),
        "correction": rng.uniform(0.5, 1.5, logps.shape),
        "values": values,
        "old_values": values + 0.3 * rng.standard_normal(logps.shape),
        "returns": rng.standard_normal(logps.shape),
        "scores": rng.standard_normal(ROWS),
    }


def project(grad):
    """Return the products of a gradient with DIRECTIONS fixed random directions."""
    directions = generator("directions", grad.size).standard_normal((DIRECTIONS, grad.size))
    return directions @ np.asarray(grad, np.float64).reshape(-1)

# SPDX-License-Identifier: Apache-2.0
"""Losses of preferences: pure functions of the log-probabilities of answers. No model here.

A pair loss takes `chosen` and `rejected` [B], which are log-probabilities of the two answers, or
their ratios to those of a reference; `beta`; and `epsilon`, how likely it is that a label is wrong
(used by those that say so). It returns the loss of each pair [B].
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from llm.train import losses

Array = jax.Array
PairLoss = Callable[[Array, Array, float, float], Array]

_log_sigmoid = jax.nn.log_sigmoid
_sigmoid = jax.nn.sigmoid
DISCOPOP_TEMPERATURE = 0.05


def sigmoid(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """DPO (arXiv:2305.18290, eq. 7); with epsilon its conservative form (cDPO)."""
    margin = beta * (chosen - rejected)
    return -(1 - epsilon) * _log_sigmoid(margin) - epsilon * _log_sigmoid(-margin)


def robust(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """Unbiased under labels that are flipped with probability epsilon < ½ (arXiv:2403.00409)."""
    margin = beta * (chosen - rejected)
    clean = -(1 - epsilon) * _log_sigmoid(margin) + epsilon * _log_sigmoid(-margin)
    return clean / (1 - 2 * epsilon)


def hinge(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """A margin of one (SLiC-HF, arXiv:2305.10425)."""
    return jax.nn.relu(1 - beta * (chosen - rejected))


def squared(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """IPO: the squared distance of the margin to 1 / 2β (arXiv:2310.12036, eq. 17)."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def exo(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """The reverse KL to labels softened by epsilon > 0 (arXiv:2402.00856, eq. 16)."""
    margin = beta * (chosen - rejected)
    right = _sigmoid(margin) * (_log_sigmoid(margin) - math.log1p(-epsilon))
    return right + _sigmoid(-margin) * (_log_sigmoid(-margin) - math.log(epsilon))


def nca(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """Noise-contrastive alignment (arXiv:2402.05369): keeps the chosen answer likely."""
    good, bad = beta * chosen, beta * rejected
    return -_log_sigmoid(good) - 0.5 * _log_sigmoid(-good) - 0.5 * _log_sigmoid(-bad)


def bco(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """A binary classifier of single answers (arXiv:2404.04656), without its running shift."""
    return -_log_sigmoid(beta * chosen) - _log_sigmoid(-beta * rejected)


def sppo(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """Self-play with hard labels (arXiv:2405.00675, eq. 4.7)."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """For chosen answers better than the model's own (arXiv:2408.06266, eq. 7)."""
    return 1 - _sigmoid(beta * chosen) + _sigmoid(beta * rejected)


def apo_down(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """For chosen answers worse than the model's own (arXiv:2408.06266, eq. 8)."""
    return _sigmoid(beta * chosen) + 1 - _sigmoid(beta * (chosen - rejected))


def discopop(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """Logistic near a tie, exponential for pairs that are right (arXiv:2406.08414, eq. 5)."""
    margin = beta * (chosen - rejected)
    share = _sigmoid(margin / DISCOPOP_TEMPERATURE)
    return -_log_sigmoid(margin) * (1 - share) + jnp.exp(-margin) * share


def odds(chosen: Array, rejected: Array, beta: float, epsilon: float) -> Array:
    """ORPO's odds ratio of log-probabilities averaged over tokens (arXiv:2403.07691, eq. 6, 7)."""
    ratio = (chosen - rejected) - (losses.log1mexp(chosen) - losses.log1mexp(rejected))
    return -beta * _log_sigmoid(ratio)


# objective.loss: what is made of a pair
PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "squared": squared,
    "exo": exo,
    "nca": nca,
    "bco": bco,
    "sppo": sppo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "odds": odds,
}


def pair_sums(each: Array, good: Array, bad: Array, real: Array) -> losses.Sums:
    """Sum the losses of pairs, with the figures of their rewards.

    Args:
        each: losses [B].
        good: rewards of the chosen answers [B].
        bad: of the rejected.
        real: [B] bool; False leaves a pair out.
    """
    return masked(
        {
            "loss": each,
            "reward_accuracy": 0.5 + 0.5 * jnp.sign(good - bad),  # a tie is half right
            "reward_margin": good - bad,
            "reward_chosen": good,
            "reward_rejected": bad,
        },
        real,
    )


def masked(values: dict[str, Array], real: Array) -> losses.Sums:
    """Return (sum, count) of values [B] over the real rows; others may hold anything finite."""
    count = real.astype(jnp.float32).sum()
    return {name: (jnp.where(real, x, 0).sum(), count) for name, x in values.items()}


def bradley_terry(
    chosen: Array, rejected: Array, margins: Array | float = 0.0, centre: float = 0.0
) -> Array:
    """Return a reward model's loss -log σ(chosen - rejected - margin) of each pair [B].

    Args:
        chosen: scores [B].
        rejected: scores [B].
        margins: [B], by how much the chosen answer should win (Llama 2, arXiv:2307.09288, eq. 2).
        centre: factor on (chosen + rejected)², which keeps scores around zero (arXiv:2312.09244).
    """
    return -_log_sigmoid(chosen - rejected - margins) + centre * (chosen + rejected) ** 2


def kto(
    ratios: Array,
    kl_ratios: Array,
    desirable: Array,
    real: Array,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> losses.Sums:
    """Sum the losses of single answers that were liked or not (arXiv:2402.01306, eq. 7, 8).

    The point of reference z is the mean of `kl_ratios` over the batch, at least 0, and no gradient
    goes through it: a batch that is split estimates it in each part.

    Args:
        ratios: log-ratios of answers to a reference [B].
        kl_ratios: those of other answers to the same prompts [B]; zeros for z = 0, which is
            APO-zero of single answers (arXiv:2408.06266).
        desirable: [B] bool.
        real: [B] bool; False leaves a row out, of z too.
        beta: strength of the pull to the reference.
        desirable_weight: factor on the losses of answers that were liked.
        undesirable_weight: factor on the others.
    """
    count = jnp.maximum(real.astype(jnp.float32).sum(), 1)
    z = jnp.maximum(jnp.where(real, kl_ratios, 0).sum() / count, 0)
    z = jax.lax.stop_gradient(z)
    liked = desirable_weight * (1 - _sigmoid(beta * (ratios - z)))
    other = undesirable_weight * (1 - _sigmoid(beta * (z - ratios)))
    sums = masked({"loss": jnp.where(desirable, liked, other)}, real)
    rewards = beta * ratios
    good = masked({"reward_chosen": rewards}, real & desirable)
    bad = masked({"reward_rejected": rewards}, real & ~desirable)
    return {**sums, **good, **bad, "kl": (z * count, count)}

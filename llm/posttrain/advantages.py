# SPDX-License-Identifier: Apache-2.0
"""From rewards to advantages, on the host in float64: once per rollout, whatever trains on it.

B answers come in groups of G to the same prompt, one after the other. A reward of NaN says that
nobody could judge the answer: it neither teaches nor counts in a baseline.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from llm.errors import ConfigError, unknown

SCALES = ("group", "batch", "none")
PLACES = ("end", "after")


class Judged(NamedTuple):
    """What advantages are made of.

    Attributes:
        scores: [B] rewards of whole answers.
        penalties: [B, T] KL penalties per token, times their coefficient; 0 outside `mask`.
        mask: [B, T] 1 on the answer's tokens, which are contiguous.
        values: [B, T] expected rewards before each target; () without a value head.
        group: answers per prompt.
    """

    scores: np.ndarray
    penalties: np.ndarray
    mask: np.ndarray
    values: np.ndarray | tuple
    group: int


class Made(NamedTuple):
    """Advantages [B] of answers or [B, T] of tokens; returns and their mask, for values."""

    advantages: np.ndarray
    returns: np.ndarray | None = None
    mask: np.ndarray | None = None


def std(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the standard deviation with Bessel's correction of what is not NaN; 0 of one."""
    known = ~np.isnan(x)
    n = known.sum(axis=axis, keepdims=True)
    mean = np.where(known, x, 0).sum(axis=axis, keepdims=True) / np.maximum(n, 1)
    squares = np.where(known, (x - mean) ** 2, 0).sum(axis=axis, keepdims=True)
    return np.sqrt(squares / np.maximum(n - 1, 1))


def whiten(
    x: np.ndarray,
    mask: np.ndarray,
    *,
    shift: bool = True,
    bessel: bool = True,
    epsilon: float = 1e-8,
) -> np.ndarray:
    """Scale what the mask chooses to variance 1 and, with `shift`, mean 0.

    Args:
        x: any shape.
        mask: the same; its number of ones is what is averaged over.
        shift: False keeps the mean.
        bessel: divide by n - 1 (TRL, Tunix) rather than n (OpenRLHF).
        epsilon: added to the variance.
    """
    n = mask.sum()
    mean = (x * mask).sum() / np.maximum(n, 1)
    variance = ((x - mean) ** 2 * mask).sum() / np.maximum(n - bessel, 1)
    scaled = (x - mean) / np.sqrt(variance + epsilon)
    return (scaled if shift else scaled + mean) * mask


def estimate(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Return generalised advantage estimates [B, T] (arXiv:1506.02438, eq. 16).

    Args:
        rewards: [B, T]; 0 where nothing happens.
        values: [B, T]; 0 after the end, so that nothing is expected there.
        gamma: discount.
        lam: 1 trusts rewards alone, 0 the next value alone.
    """
    advantages = np.zeros_like(rewards)
    following, carried = np.zeros(len(rewards)), np.zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = delta + gamma * lam * carried
        advantages[:, t], following = carried, values[:, t]
    return advantages


def last(mask: np.ndarray) -> np.ndarray:
    """Return the place [B] of the last 1 of each row; -1 where there is none."""
    T = mask.shape[1]
    return np.where(mask.any(axis=1), T - 1 - np.argmax(mask[:, ::-1] > 0, axis=1), -1)


def token_rewards(judged: Judged, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Lay rewards [B, T] along the tokens; return the mask of the places that have values.

    Args:
        judged: see `Judged`.
        place: where the score of the whole answer is earned: "end" with its last token, or "after"
            it, one place later if there is one (TRL's PPO), whose value is then learned too.
    """
    mask = judged.mask.astype(np.float64)
    rewards = -judged.penalties.astype(np.float64) * mask
    at, rows = last(mask), np.arange(len(mask))
    if place == "after":
        at = np.where(at >= 0, np.minimum(at + 1, mask.shape[1] - 1), -1)
        mask[rows[at >= 0], at[at >= 0]] = 1
    some = (at >= 0) & ~np.isnan(judged.scores)
    rewards[rows[some], at[some]] += judged.scores[some]
    return rewards, mask


def gae(
    judged: Judged,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    place: str = "end",
    whiten_rewards: bool = False,
    whitening: bool = True,
    bessel: bool = True,
) -> Made:
    """Generalised advantage estimates against a value head: PPO.

    Args:
        judged: see `Judged`.
        gamma: discount per token.
        lam: see `estimate`.
        place: see `token_rewards`.
        whiten_rewards: scale the rewards to variance 1 first; their mean stays.
        whitening: scale the advantages to mean 0 and variance 1 over the rollout's tokens.
        bessel: see `whiten`.

    Raises:
        ConfigError: the model has no value head.
    """
    if isinstance(judged.values, tuple):
        raise ConfigError(
            "Advantages 'gae' need expected values, but the model has no value head.",
            "Set config.model.value_head=true, or choose other advantages.",
        )
    if place not in PLACES:
        raise unknown("rollout.advantages.place", place, PLACES)
    rewards, mask = token_rewards(judged, place)
    values = judged.values.astype(np.float64) * mask
    if whiten_rewards:
        rewards = whiten(rewards, mask, shift=False, bessel=bessel)
    advantages = estimate(rewards, values, gamma, lam) * mask
    returns = advantages + values
    chosen = judged.mask.astype(np.float64)
    made = whiten(advantages, chosen, bessel=bessel) if whitening else advantages * chosen
    return Made(made, returns, mask)


def _penalised(judged: Judged) -> np.ndarray:
    """Return the scores in float64, minus the sum of each answer's KL penalties."""
    return judged.scores.astype(np.float64) - (judged.penalties * judged.mask).sum(axis=1)


def group(judged: Judged, *, scale: str = "group", epsilon: float = 1e-4) -> Made:
    """Compare answers with the mean of their group: GRPO.

    Args:
        judged: see `Judged`.
        scale: divide by the standard deviation of the "group", of the "batch", or by "none"
            (Dr. GRPO: it favours questions that are nearly always or never answered).
        epsilon: added to it: 1e-4 in TRL, 1e-6 in Tunix and verl, 1e-8 in open-instruct.
    """
    if scale not in SCALES:
        raise unknown("rollout.advantages.scale", scale, SCALES)
    grouped = _penalised(judged).reshape(-1, judged.group)
    known = ~np.isnan(grouped)
    n = np.maximum(known.sum(axis=1, keepdims=True), 1)
    made = grouped - np.where(known, grouped, 0).sum(axis=1, keepdims=True) / n
    if scale != "none":
        made = made / (std(grouped, axis=1 if scale == "group" else None) + epsilon)
    return Made(np.nan_to_num(made.reshape(-1), nan=0.0))


def leave_one_out(judged: Judged, *, normalize: bool = False, epsilon: float = 1e-4) -> Made:
    """Compare each answer with the mean of the others of its group: RLOO (arXiv:2402.14740).

    Args:
        judged: see `Judged`.
        normalize: scale the advantages of the rollout to mean 0 and variance 1.
        epsilon: added to their standard deviation.
    """
    grouped = _penalised(judged).reshape(-1, judged.group)
    known = ~np.isnan(grouped)
    total = np.where(known, grouped, 0).sum(axis=1, keepdims=True)
    others = known.sum(axis=1, keepdims=True) - 1
    baseline = (total - grouped) / np.where(others > 0, others, np.nan)
    made = (grouped - baseline).reshape(-1)
    if normalize and not np.isnan(made).all():
        made = (made - np.nanmean(made)) / (std(made) + epsilon)
    return Made(np.nan_to_num(made, nan=0.0))


def reinforce_pp(
    judged: Judged, *, baseline: bool = False, gamma: float = 1.0, bessel: bool = False
) -> Made:
    """Sum what follows each token, and scale over the rollout: REINFORCE++ (arXiv:2501.03262).

    Args:
        judged: see `Judged`.
        baseline: first subtract the mean score of the group ("REINFORCE++-baseline").
        gamma: discount per token.
        bessel: see `whiten`; OpenRLHF divides by n.
    """
    scores = judged.scores.astype(np.float64)
    if baseline:
        scores = group(judged._replace(penalties=judged.penalties * 0), scale="none").advantages
    judged = judged._replace(scores=scores)
    rewards, _ = token_rewards(judged, "end")
    made = estimate(rewards, np.zeros_like(rewards), gamma, 1.0)
    mask = judged.mask * ~np.isnan(scores)[:, None]
    return Made(whiten(made, mask.astype(np.float64), bessel=bessel))


ADVANTAGES: dict[str, Callable[..., Made]] = {
    "group": group,
    "leave_one_out": leave_one_out,
    "reinforce_pp": reinforce_pp,
    "gae": gae,
}

IMPORTANCE = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def importance(
    trainer: np.ndarray,
    sampler: np.ndarray,
    mask: np.ndarray,
    *,
    name: str,
    most: float,
    least: float = 0.0,
) -> np.ndarray:
    """Return weights [B, T] for text that a program drew whose numbers differ from training's.

    Args:
        trainer, sampler: [B, T] log-probabilities of the same tokens.
        mask: [B, T].
        name: "token_…" weighs tokens by p_trainer / p_sampler, "sequence_…" answers by the
            product; "…_truncate" limits the weight to most and least, "…_mask" leaves out what is
            beyond them (TRL's default for vLLM: "sequence_mask" with 3).
        most, least: see `name`.
    """
    gap = (trainer.astype(np.float64) - sampler) * mask
    if name.startswith("sequence"):
        gap = np.broadcast_to(gap.sum(axis=1, keepdims=True), gap.shape)
    weights = np.exp(gap)
    if name.endswith("truncate"):
        return np.clip(weights, least, most)
    return np.where((weights < least) | (weights > most), 0.0, weights)


def adapt(
    coef: float, observed: float, answers: int, *, target: float, horizon: float, step: float = 0.2
) -> float:
    """Move a KL coefficient so that the KL nears its target (arXiv:1909.08593, eq. 3).

    Args:
        coef: so far.
        observed: mean KL of whole answers, in nats.
        answers: it was measured on.
        target: in nats per answer.
        horizon: answers over which an error of `step` or more moves the coefficient by about that
            fraction.
        step: largest relative error that counts.
    """
    error = min(max(observed / target - 1, -step), step)
    return coef * (1 + error * answers / horizon)

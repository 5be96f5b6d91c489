# SPDX-License-Identifier: Apache-2.0
"""Preference learning: objectives over rows with a chosen and a rejected answer, or single ones.

One forward pass, one function of log-probabilities and one table of losses (`pair_losses`) serve
them all: they differ in the loss, in whether log-probabilities are averaged over tokens, and in the
reference that they are compared with.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.core import trees
from llm.errors import ConfigError, unknown
from llm.models import tuning
from llm.posttrain import pair_losses
from llm.train import losses
from llm.train.objective import Batch, Objective, model_inputs, nothing

REFERENCES = ("start", "base", "rows", "none")
MEANS = ("sequences", "tokens")


class Answers(NamedTuple):
    """Log-probabilities of a batch of answers, each [B] float32.

    Attributes:
        logps: summed over the answer.
        length: its tokens.
        whole: summed over everything, the prompt included.
        whole_length: its tokens.
    """

    logps: jax.Array
    length: jax.Array
    whole: jax.Array
    whole_length: jax.Array


def answers(
    model: Any, params: Any, batch: Batch, prefix: str, keys: jax.Array | None, chunk: int
) -> Answers:
    """Score the answers of rows that hold one sequence each."""
    variables = {"params": params}
    hidden, _ = model.apply(
        variables,
        batch[f"{prefix}tokens"],
        **model_inputs(batch, prefix),
        dropout_keys=keys,
        method="hidden_and_aux",
    )
    segments = batch[f"{prefix}segments"]
    # The last token has no target: the next position is padding, or there is none.
    real = jnp.pad(segments[:, 1:] > 0, ((0, 0), (0, 1))).astype(jnp.float32)
    weights = jnp.stack([batch[f"{prefix}weights"], real], axis=-1)  # [B, T, 2]

    def head(h: jax.Array, targets: jax.Array, weights: jax.Array) -> losses.Sums:
        logps = losses.token_logprobs(model.apply(variables, h, method="head"), targets)
        summed = (logps[:, :, None] * weights).sum(axis=1)
        return {"logps": (summed, jnp.zeros_like(summed))}

    sums = losses.in_chunks(head, hidden, batch[f"{prefix}targets"], weights, chunk)
    logps, lengths = sums["logps"][0], weights.sum(axis=1)
    return Answers(logps[:, 0], lengths[:, 0], logps[:, 1], lengths[:, 1])


def joined(batch: Batch) -> dict[str, jax.Array]:
    """Put the rejected side under the chosen one: "chosen_tokens" [B, T] -> "tokens" [2B, T]."""
    return {
        name.removeprefix("chosen_"): jnp.concatenate(
            [batch[name], batch[name.replace("chosen_", "rejected_")]]
        )
        for name in batch
        if name.startswith("chosen_")
    }


# (params, frozen, batch, prefix, answers of the policy) -> log-probabilities [B] to subtract
Reference = Callable[[Any, Any, Batch, str, jax.Array], jax.Array]


def make_reference(model: Any, kind: str, average: bool, chunk: int) -> Reference:
    """Return what gives the reference's log-probabilities of answers.

    "start" puts the trained leaves back to what they were; "base" leaves the adapters out, which
    for fresh low-rank updates is the same without keeping anything; "rows" reads what was computed
    beforehand; "none" compares with nothing.

    Raises:
        ConfigError: another kind, or "base" without adapters.
    """
    if kind not in REFERENCES:
        raise unknown("objective.reference", kind, REFERENCES)
    if kind == "base" and model.config.adapter.name == "none":
        raise ConfigError(
            "objective.reference='base' is the model without its adapters, but it has none.",
            "Use objective.reference='start', or set config.model.adapter.name.",
        )

    def start(params: Any, frozen: Any, batch: Batch, prefix: str) -> jax.Array:
        full = trees.unflatten(trees.flatten(params) | trees.flatten(frozen))
        return answers(model, full, batch, prefix, None, chunk).logps

    def base(params: Any, frozen: Any, batch: Batch, prefix: str) -> jax.Array:
        config, rest = tuning.without(model.config, params)
        return answers(type(model)(config), rest, batch, prefix, None, chunk).logps

    def rows(params: Any, frozen: Any, batch: Batch, prefix: str) -> jax.Array:
        return batch[f"{prefix}logps"]

    def none(params: Any, frozen: Any, batch: Batch, prefix: str) -> jax.Array:
        return jnp.float32(0)

    made = {"start": start, "base": base, "rows": rows, "none": none}[kind]

    def logps(params: Any, frozen: Any, batch: Batch, prefix: str, length: jax.Array) -> jax.Array:
        found = made(jax.lax.stop_gradient(params), frozen, batch, prefix)
        return found / jnp.maximum(length, 1) if average else found

    return logps


def _frozen(reference: str) -> Callable[[Any], Any]:
    """Return an objective's init: a copy of what is trained, where the reference is the start."""
    return functools.partial(jax.tree.map, jnp.copy) if reference == "start" else nothing


def _pairs(
    model: Any,
    *,
    loss: str,
    beta: float,
    average: bool = False,
    reference: str = "none",
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    sft_weight: float = 0.0,
    sft_mean: str = "sequences",
    sft_on_prompt: bool = False,
    chunk: int = 0,
) -> Objective:
    """Build an objective of pairs; the public ones name what they need."""
    if loss not in pair_losses.PAIR_LOSSES:
        raise unknown("objective.loss", loss, pair_losses.PAIR_LOSSES)
    if sft_mean not in MEANS:
        raise unknown("objective.sft_mean", sft_mean, MEANS)
    if not 0 <= label_smoothing < 0.5 or (loss == "exo" and not label_smoothing):
        raise ConfigError(
            f"objective.label_smoothing is {label_smoothing} with objective.loss={loss!r}.",
            "Use a probability below 0.5 (above 0 for exo).",
        )
    pair_loss = pair_losses.PAIR_LOSSES[loss]
    dropout = model.config.stochastic
    reference_of = make_reference(model, reference, average, chunk)

    def total(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        both = joined(batch)
        # The same dropout masks on both answers: their difference is what is learned.
        twice = jnp.concatenate([keys, keys]) if dropout and keys is not None else None
        found = answers(model, params, both, "", twice, chunk)
        own = found.logps / jnp.maximum(found.length, 1) if average else found.logps
        ratios = own - reference_of(params, frozen, both, "", found.length)
        chosen, rejected = jnp.split(ratios, 2)
        lengths = jnp.split(found.length, 2)
        real = (lengths[0] > 0) & (lengths[1] > 0)
        each = pair_loss(chosen - gamma / beta, rejected, beta, label_smoothing)
        if sft_weight:
            each = each + sft_weight * _nll(found, real, sft_mean, sft_on_prompt)
        sums = pair_losses.pair_sums(each, beta * chosen, beta * rejected, real)
        logps = jnp.split(found.logps, 2)
        more = {"logp_chosen": logps[0], "logp_rejected": logps[1]}
        more |= {"length_chosen": lengths[0], "length_rejected": lengths[1]}
        return {**sums, **pair_losses.masked(more, real)}

    return Objective(_frozen(reference), total)


def _nll(found: Answers, real: jax.Array, mean: str, on_prompt: bool) -> jax.Array:
    """Return the chosen answers' negative log-likelihood per token [B].

    As mean of "sequences" each answer counts alike; of "tokens", each token of the batch does, so
    that a batch that is split gives another value.
    """
    logps = found.whole if on_prompt else found.logps
    length = found.whole_length if on_prompt else found.length
    n = real.shape[0]
    logps, length = jnp.where(real, logps[:n], 0), jnp.where(real, length[:n], 0)
    if mean == "sequences":
        return -logps / jnp.maximum(length, 1)
    return jnp.broadcast_to(-logps.sum() / jnp.maximum(length.sum(), 1), (n,))


def dpo(
    model: Any,
    *,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    average: bool = False,
    sft_weight: float = 0.0,
    chunk: int = 0,
    reference: str = "start",
) -> Objective:
    """Direct preference optimisation against a frozen reference.

    Args:
        model: a Transformer.
        loss: one of `pair_losses.PAIR_LOSSES`.
        beta: strength of the pull to the reference.
        label_smoothing: probability that a label is wrong: cDPO with the sigmoid loss (TRL ignores
            it there), and what "robust" and "exo" need.
        average: divide each answer's log-ratio by its tokens.
        sft_weight: weight of the chosen answer's mean negative log-likelihood (RPO).
        chunk: positions whose logits exist at once; 0 for all.
        reference: "start", the model as training begins (a copy of what is trained, no more),
            "base", the model without its adapters (no copy), or "rows", log-probabilities computed
            once before training (no copy and no second forward pass).
    """
    return _pairs(
        model,
        loss=loss,
        beta=beta,
        label_smoothing=label_smoothing,
        average=average,
        sft_weight=sft_weight,
        chunk=chunk,
        reference=reference,
    )


def ipo(
    model: Any,
    *,
    beta: float = 0.1,
    average: bool = True,
    sft_weight: float = 0.0,
    chunk: int = 0,
    reference: str = "start",
) -> Objective:
    """Identity preference optimisation: like `dpo`, with a bounded margin.

    Args:
        average: compare log-ratios per token, as the paper's authors and TRL do; False compares
            their sums, as OpenRLHF does. The margin sought is 1 / 2β either way.
    """
    return _pairs(
        model,
        loss="squared",
        beta=beta,
        average=average,
        sft_weight=sft_weight,
        chunk=chunk,
        reference=reference,
    )


def cpo(
    model: Any,
    *,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft_weight: float = 1.0,
    sft_mean: str = "sequences",
    chunk: int = 0,
) -> Objective:
    """Contrastive preference optimisation (arXiv:2401.08417): no reference, but the likelihood.

    Args:
        sft_mean: whether the likelihood's mean is over "sequences" (exact under any split of the
            batch) or over the "tokens" of the batch (TRL).
    """
    return _pairs(
        model,
        loss=loss,
        beta=beta,
        label_smoothing=label_smoothing,
        sft_weight=sft_weight,
        sft_mean=sft_mean,
        chunk=chunk,
    )


def simpo(
    model: Any,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
    chunk: int = 0,
) -> Objective:
    """Simple preference optimisation (arXiv:2405.14734): log-probabilities per token, no reference.

    Args:
        gamma: the margin of rewards that is sought.
        sft_weight: weight of the chosen answer's likelihood (CPO-SimPO).
    """
    return _pairs(
        model,
        loss="sigmoid",
        beta=beta,
        gamma=gamma,
        average=True,
        label_smoothing=label_smoothing,
        sft_weight=sft_weight,
        chunk=chunk,
    )


def orpo(
    model: Any,
    *,
    beta: float = 0.1,
    sft_mean: str = "sequences",
    sft_on_prompt: bool = True,
    chunk: int = 0,
) -> Objective:
    """Odds-ratio preference optimisation (arXiv:2403.07691): likelihood and preference in one.

    Args:
        beta: weight of the odds ratio (the paper's λ).
        sft_mean: see `cpo`.
        sft_on_prompt: learn the prompt's tokens too, as the authors and TRL do.
    """
    return _pairs(
        model,
        loss="odds",
        beta=beta,
        average=True,
        sft_weight=1.0,
        sft_mean=sft_mean,
        sft_on_prompt=sft_on_prompt,
        chunk=chunk,
    )


def kto(
    model: Any,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: bool = True,
    chunk: int = 0,
    reference: str = "start",
) -> Objective:
    """Kahneman-Tversky optimisation of single answers with a label: see `pair_losses.kto`.

    Args:
        kl: estimate the point of reference from answers to other prompts; False takes 0.
    """
    dropout = model.config.stochastic
    reference_of = make_reference(model, reference, False, chunk)

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        found = answers(model, params, batch, "", keys if dropout else None, chunk)
        ratios = found.logps - reference_of(params, frozen, batch, "", found.length)
        kl_ratios = jnp.zeros_like(ratios)
        if kl:
            held = jax.lax.stop_gradient(params)
            other = answers(model, held, batch, "kl_", None, chunk)
            kl_ratios = other.logps - reference_of(held, frozen, batch, "kl_", other.length)
        return pair_losses.kto(
            ratios,
            kl_ratios,
            batch["labels"] > 0,
            found.length > 0,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )

    return Objective(_frozen(reference), loss)

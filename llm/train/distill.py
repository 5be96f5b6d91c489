# SPDX-License-Identifier: Apache-2.0
"""Distillation: make a student's next-token distributions like a teacher's.

One divergence serves all: forward and reverse KL are the ends of the generalised Jensen-Shannon
divergence (arXiv:2306.13649, eq. 1). The teacher is a second model, or its most likely tokens,
stored in the rows beforehand (`llm.train.teacher`). On which texts is a matter of the data: fixed
ones, the student's own (GKD, on-policy), or a mixture.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from llm.errors import ConfigError
from llm.train import losses
from llm.train.objective import Batch, Objective, model_inputs, nothing

ROWS = "rows"  # objective.teacher: what the rows hold


def divergence(student: jax.Array, teacher: jax.Array, beta: float) -> jax.Array:
    """Return the generalised Jensen-Shannon divergence of distributions [..., V] -> [...].

    With m = (1 - β) s + β t it is β KL(t‖m) + (1 - β) KL(s‖m); at β = 0 it is the forward
    KL(t‖s), which covers what the teacher does, and at β = 1 the reverse KL(s‖t), which avoids what
    it does not.

    Args:
        student: log-probabilities, float32; those of -inf must be the teacher's too.
        teacher: log-probabilities.
        beta: from 0 to 1.
    """
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    return (jnp.exp(p) * (p - q)).sum(axis=-1)


def gathered(logps: jax.Array, ids: jax.Array) -> jax.Array:
    """Return log-probabilities of the given tokens, and last of all others together.

    Args:
        logps: [..., V].
        ids: [..., k].

    Returns:
        [..., k + 1]: a distribution again, whose divergences bound those of the whole from below.
    """
    return with_rest(jnp.take_along_axis(logps, ids, axis=-1))


def with_rest(logps: jax.Array) -> jax.Array:
    """Add the log-probability of everything else: [..., k] -> [..., k + 1]."""
    return jnp.concatenate(
        [logps, losses.log1mexp(jax.nn.logsumexp(logps, axis=-1, keepdims=True))], axis=-1
    )


def distill(
    model: Any,
    *,
    teacher: str = ROWS,
    beta: float = 0.0,
    temperature: float = 1.0,
    sft_weight: float = 0.0,
    teacher_dtype: str = "float32",
    chunk: int = 0,
) -> Objective:
    """Train on rows to agree with a teacher at every weighted target.

    Args:
        model: a Transformer, the student.
        teacher: what `llm.load` opens, or "rows": the most likely tokens stored in the rows.
        beta: 0 forward KL, 1 reverse KL, between them Jensen-Shannon: see `divergence`.
        temperature: divides both models' logits. Stored tokens have that of their storing.
        sft_weight: weight of the cross-entropy with the targets, added to the divergence.
        teacher_dtype: of the teacher's parameters and computation.
        chunk: positions whose logits exist at once; 0 for all.

    Raises:
        ConfigError: beta is out of range, or the teacher has another vocabulary.
    """
    if not 0 <= beta <= 1 or temperature <= 0:
        raise ConfigError(
            f"objective.beta is {beta}, objective.temperature {temperature}.",
            "Use a beta from 0 to 1 and a temperature above 0.",
        )
    teaching = (
        None if teacher == ROWS else load_teacher(teacher, teacher_dtype, model.config.vocab_size)
    )
    dropout = model.config.stochastic

    def loss(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> losses.Sums:
        inputs = model_inputs(batch)
        student = {"params": params}
        hidden, _ = model.apply(
            student,
            batch["tokens"],
            **inputs,
            dropout_keys=keys if dropout else None,
            method="hidden_and_aux",
        )
        if teaching is None:
            known = (batch["topids"], batch["toplogps"])
        else:
            held = {"params": jax.lax.stop_gradient(frozen)}
            known = teaching.model.apply(held, batch["tokens"], **inputs, method="hidden")

        def part(states: Any, targets: jax.Array, weights: jax.Array) -> losses.Sums:
            logits = model.apply(student, states[0], method="head")
            own = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
            if teaching is None:
                own, other = gathered(own, states[1][0]), with_rest(states[1][1])
            else:
                other = teaching.model.apply(held, states[1], method="head")
                other = jax.nn.log_softmax(other.astype(jnp.float32) / temperature)
            sums = losses.cross_entropy(logits, targets, weights)
            apart = (divergence(own, other, beta) * weights).sum(), weights.sum()
            total = apart[0] + sft_weight * sums["loss"][0]
            return {**sums, "loss": (total, apart[1]), "divergence": apart}

        return losses.in_chunks(part, (hidden, known), batch["targets"], batch["weights"], chunk)

    if teaching is None:
        return Objective(nothing, loss)
    return Objective(lambda params: teaching.params, loss, given=teaching.params)


def gkd(
    model: Any,
    *,
    teacher: str = ROWS,
    beta: float = 0.5,
    temperature: float = 1.0,
    sft_weight: float = 0.0,
    teacher_dtype: str = "float32",
    chunk: int = 0,
) -> Objective:
    """Generalised knowledge distillation (arXiv:2306.13649): `distill`, meant for the student's own
    answers as rows, with the symmetric divergence."""
    return distill(
        model,
        teacher=teacher,
        beta=beta,
        temperature=temperature,
        sft_weight=sft_weight,
        teacher_dtype=teacher_dtype,
        chunk=chunk,
    )


def load_teacher(source: str, dtype: str, vocab_size: int) -> Any:
    """Open the teacher.

    Raises:
        ConfigError: its vocabulary is another one.
    """
    from llm.generate.language_model import load

    lm = load(source, dtype)
    if lm.config.vocab_size != vocab_size:
        raise ConfigError(
            f"The teacher {source} has {lm.config.vocab_size} tokens, the student {vocab_size}.",
            "Choose a teacher with the student's tokenizer.",
        )
    return lm

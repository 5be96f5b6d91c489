# SPDX-License-Identifier: Apache-2.0
"""A teacher's most likely tokens, computed once and kept in the rows.

Distillation then needs no teacher in memory (objective.teacher = "rows").
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.core import trees
from llm.data import rows
from llm.errors import ConfigError
from llm.train.objective import model_inputs


def with_teacher(
    splits: Mapping[str, rows.RowDataset],
    vocab_size: int,
    *,
    source: str,
    k: int = 16,
    temperature: float = 1.0,
    batch_size: int = 8,
) -> dict[str, rows.RowDataset]:
    """Return the rows with a teacher's k most likely tokens at every position.

    Fields "topids" [rows, T, k] and "toplogps", their log-probabilities, most likely first.

    Args:
        splits: name -> rows.
        vocab_size: of the student.
        source: what `llm.load` opens.
        k: tokens kept.
        temperature: divides the teacher's logits; train with the same.
        batch_size: rows at a time.

    Raises:
        ConfigError: k or the temperature is out of range, or the teacher's vocabulary is another.
    """
    from llm.train.distill import load_teacher

    if not 1 <= k <= vocab_size or temperature <= 0:
        raise ConfigError(
            f"data.teacher has k={k}, temperature={temperature}.",
            f"Use a k from 1 to {vocab_size} and a temperature above 0.",
        )
    lm = load_teacher(source, "float32", vocab_size)

    @jax.jit
    def likely(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        logits = lm.model.apply({"params": params}, batch["tokens"], **model_inputs(batch))
        return jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32) / temperature), k)

    def fields(batch: rows.Batch) -> rows.Batch:
        logps, ids = likely(lm.params, batch)
        return {"topids": np.asarray(ids), "toplogps": np.asarray(logps)}

    digest = trees.fingerprint(lm.params)
    options = {"k": k, "temperature": temperature}
    return {
        name: rows.extended(dataset, "teacher", digest, fields, batch_size, **options)
        for name, dataset in splits.items()
    }

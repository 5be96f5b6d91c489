# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a reference, computed once and kept in the rows.

Training then needs neither a copy of the reference nor its forward pass (objective.reference =
"rows"). The reference is the model that the run starts from.
"""

from collections.abc import Mapping
from typing import Any

import jax

from llm.core import config as configs
from llm.core import trees
from llm.data import rows
from llm.errors import ConfigError
from llm.posttrain.preference import answers
from llm.train import teacher

SIDES = ("chosen_", "rejected_", "", "kl_")


def with_logps(
    splits: Mapping[str, rows.RowDataset], lm: Any, batch_size: int = 8, chunk: int = 0
) -> dict[str, rows.RowDataset]:
    """Return the rows with the reference's log-probability of every answer: "chosen_logps", ….

    They are written beside the given rows; rows that hold them already are used again.

    Args:
        splits: name -> preference rows, or rows of single answers.
        lm: the reference, or None.
        batch_size: rows at a time.
        chunk: positions whose logits exist at once; 0 for all.

    Raises:
        ConfigError: there is no model to start from.
    """
    if lm is None:
        raise ConfigError(
            "objective.reference='rows' needs a model to start from.", "Give config.init.from."
        )
    digest = trees.fingerprint(lm.params)
    return {name: _one(dataset, lm, digest, batch_size, chunk) for name, dataset in splits.items()}


def add_known(
    config: Any, splits: Mapping[str, rows.RowDataset], start: Any, vocab_size: int
) -> Mapping[str, rows.RowDataset]:
    """Add to the rows what the reference or a teacher knows of them, where the objective asks.

    Args:
        config: sections objective and data.
        splits: name -> rows.
        start: the model that the run starts from, or None.
        vocab_size: of the model that is trained.

    Raises:
        ConfigError: no model is named.
    """
    if config.objective.get("reference") == "rows":
        splits = with_logps(splits, start, chunk=int(config.objective.get("chunk", 0)))
    if config.objective.get("teacher") == "rows":
        section = config.data.get("teacher", {})
        if not section.get("source"):
            raise ConfigError(
                "config.objective.teacher='rows', but config.data.teacher.source names no model.",
                "Give the teacher's workdir or folder in one of the two.",
            )
        given = ("splits", "vocab_size")
        options = configs.bind(teacher.with_teacher, section, "data.teacher", given=given)
        splits = teacher.with_teacher(splits, vocab_size, **options)
    return splits


def _one(
    dataset: rows.RowDataset, lm: Any, digest: str, batch_size: int, chunk: int
) -> rows.RowDataset:
    prefixes = [side for side in SIDES if f"{side}tokens" in dataset.fields]

    @jax.jit
    def score(params: Any, batch: Any) -> dict[str, jax.Array]:
        return {
            f"{side}logps": answers(lm.model, params, batch, side, None, chunk).logps
            for side in prefixes
        }

    def fields(batch: rows.Batch) -> rows.Batch:
        return jax.device_get(score(lm.params, batch))

    return rows.extended(dataset, "reference", digest, fields, batch_size)

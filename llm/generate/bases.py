# SPDX-License-Identifier: Apache-2.0
"""Runs that store what they change; the other parameters stay in the model that they began with.

A checkpoint of such a run has in its extra values
    "base": {"source", "relative", "step", "hash"}
where the model lies (also as seen from the run's folder), which of its steps was taken, and the
fingerprint of the parameters that the checkpoint leaves out.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from llm import files
from llm.core import checkpoint
from llm.core.checkpoint_files import is_local
from llm.core.fingerprint import fingerprint
from llm.core.trees import flatten, unflatten
from llm.errors import DataError, StorageError, UserError
from llm.models.adapters import ADDED

RECORD = "base"


class Base(NamedTuple):
    """A model that a run begins with.

    Attributes:
        source: where it lies.
        step: of its checkpoint, or None.
        names: parameters that are taken over bit by bit, so that a reference can stand for them.
    """

    source: str
    step: int | None
    names: frozenset[str]

    @classmethod
    def of(cls, source: str, lm: Any, merges: bool) -> "Base":
        """Describe a loaded model; where its adapter is merged, the weights it changes differ."""
        have = set(flatten(lm.params))
        changed = {
            re.sub("lora_a$", "kernel", name) for name in have if merges and name.endswith("lora_a")
        }
        names = frozenset(name for name in have - changed if not re.search(ADDED, name))
        place = files.path(source)
        return cls(str(place.absolute() if is_local(place) else place), lm.step, names)

    def record(self, directory: Any, left_out: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint keeps of it: see the head of this file."""
        local = is_local(files.path(self.source)) and is_local(files.path(directory))
        relative = os.path.relpath(self.source, os.path.abspath(directory)) if local else ""
        return {
            "source": self.source,
            "relative": relative,
            "step": self.step,
            "hash": fingerprint(left_out),
        }


def recorded(workdir: Any) -> dict[str, Any]:
    """Return the base that a run's newest checkpoint names; {} where there is none."""
    directory = files.path(workdir) / "checkpoints"
    try:
        extra = checkpoint.restore(directory, entries=()).extra
    except StorageError:  # no checkpoint, or none that is sound: whoever resumes will say which
        return {}
    return extra.get(RECORD) or {}


def complete(
    params: Mapping[str, Any],
    record: Any,
    shapes: Any,
    place: Any,
    mesh: Any,
    seen: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Add to a checkpoint's parameters those that its base holds.

    Args:
        params: as stored.
        record: of the base.
        shapes: all parameters of the model, with their stored dtypes.
        place: the run's folder.
        mesh: over which to lay them, or None.
        seen: runs whose base is being looked for.

    Raises:
        DataError: the base is gone, or is not what it was.
    """
    from llm.generate import loading

    source, step = _find(record, place)
    seen = (*seen, str(place))
    if str(source) in seen:
        raise DataError(f"The run {place} names itself as its base.", "Restore its checkpoints.")
    try:
        base = flatten(loading.load(source, "float32", step, mesh, seen).params)
    except UserError as error:
        raise DataError(
            f"The base of {place} cannot be loaded: {error.problem}",
            f"Put the model that the run began with back to {source}.",
        ) from error
    named = flatten(params)
    missing = {k: leaf for k, leaf in flatten(shapes).items() if k not in named and k in base}
    taken = {name: jnp.asarray(base[name], leaf.dtype) for name, leaf in missing.items()}
    if fingerprint(taken) != record["hash"]:
        raise changed(source, place)
    return unflatten(named | taken)


def changed(source: Any, place: Any) -> DataError:
    """Return the error that a base has other weights than when the run began."""
    return DataError(
        f"The base of {place}, {source}, has other weights than when the run began.",
        "Put the model that the run began with back there; the run stores only what it trained.",
    )


def _find(record: Any, place: Any) -> tuple[Any, int | None]:
    """Return where the base lies now: at its place, or at the same one seen from the run."""
    kinds = {"source": str, "relative": str, "hash": str, "step": int | None}
    if not isinstance(record, Mapping) or not all(
        key in record and isinstance(record[key], kind) for key, kind in kinds.items()
    ):
        raise DataError(f"The checkpoint of {place} names no base.", "Restore it from a backup.")
    found = [files.path(record["source"])]
    if record["relative"]:
        found.append(Path(os.path.normpath(Path(place).absolute() / record["relative"])))
    source = next((one for one in found if one.exists()), None)
    if source is None:
        raise DataError(
            f"The base of {place} is gone: {record['source']} does not exist.",
            "The run stores only what it trained: put the model that it began with back there"
            + (
                f", or to {record['relative']} as seen from the run." if record["relative"] else "."
            ),
        )
    return source, record["step"]

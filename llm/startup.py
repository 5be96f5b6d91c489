# SPDX-License-Identifier: Apache-2.0
"""What a training run begins with: the model it goes on from, a tokenizer, a shape."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from llm.core import config as configs
from llm.errors import ConfigError


def model_config(section: Mapping[str, Any], tokenizer: Any, inherited: Mapping | None) -> Any:
    """Build the model's config: its own fields, or those of the run it starts from.

    Raises:
        ConfigError: there is nothing to inherit, or the tokenizer has more ids than the model.
    """
    from llm.models.config import TransformerConfig, inherit

    fields = {k: section[k] for k in section}
    if fields.get("name") == "inherit":
        if inherited is None:
            raise ConfigError(
                "config.model inherits, but config.init.from is empty.",
                "Give --config.init.from=<workdir of an earlier run>.",
            )
        fields = inherit(fields, inherited)
    fields = configs.bind(TransformerConfig, fields, "model")
    fields["vocab_size"] = fields["vocab_size"] or 64 * math.ceil(tokenizer.vocab_size / 64)
    if fields["vocab_size"] < tokenizer.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocab_size} ids, "
            f"config.model.vocab_size is {fields['vocab_size']}.",
            "Use the model's own tokenizer, or set config.model.vocab_size=0 to follow it.",
        )
    return TransformerConfig(**fields).validate()


def with_classes(shape: Any, splits: Mapping[str, Any]) -> Any:
    """Give a classification head the classes of the data, where the config names none.

    One class is a score, which has no name.

    Raises:
        ConfigError: the data has no classes, or others than the model.
    """
    if not shape.classifies or shape.n_classes == 1:
        return shape
    found = [rows.manifest.get("labels", []) for rows in splits.values()]
    labels: list[str] = next((names for names in found if names), [])
    if shape.n_classes in (0, len(labels)) and labels:
        return dataclasses.replace(shape, n_classes=len(labels), labels=tuple(labels)).validate()
    raise ConfigError(
        f"config.model.n_classes={shape.n_classes}, and the held-out rows name {len(labels)}.",
        "Use config.data.source='labels' with some validation, and config.model.n_classes=0.",
    )


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Let the first process do the body's work; the others find it done."""
    import jax

    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("prepared")
    yield
    if jax.process_index() == 0:
        multihost_utils.sync_global_devices("prepared")


def open_tokenizer(config: Any, start: Any) -> Any:
    """Open config.tokenizer.path; "char" makes one of the text, "" takes that of the start.

    Raises:
        ConfigError: there is none.
    """
    path = config.tokenizer.path
    if path == "char":
        from llm.text.records import read_documents
        from llm.tokenizers import charlevel

        return charlevel.train(d["text"] for d in read_documents(config.data.path))
    if path:
        from llm import tokenizers

        return tokenizers.load(path)
    if start is None or start.tokenizer is None:
        raise ConfigError(
            "There is no tokenizer.", "Give --config.tokenizer.path=byte or a folder of one."
        )
    return start.tokenizer


def load_start(origin: str, adapter: str, workdir: str) -> tuple[Any, Any]:
    """Open the model to start from, and say what of it need not be saved again.

    New adapters begin on weights with the old ones merged in. A run that goes on begins with the
    step of its origin that it began with.
    """
    if not origin:
        return None, None
    import llm
    from llm.generate import bases

    start = llm.load(origin, step=bases.recorded(workdir).get("step"))
    merges = adapter != "inherit"
    base = bases.Base.of(origin, start, merges)
    return (start.merge() if merges else start), base

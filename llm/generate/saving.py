# SPDX-License-Identifier: Apache-2.0
"""Write models in this project's format, Hugging Face's or GGUF."""

import dataclasses
from collections.abc import Callable
from typing import Any

from llm import files
from llm.core.config import choose
from llm.errors import ConfigError
from llm.generate.language_model import LanguageModel


def save(lm: LanguageModel, directory: Any, format: str, kind: str) -> None:
    """Write a model; see `LanguageModel.save`."""
    choose(format, FORMATS, "format")(lm, files.path(directory), kind)


def _native(lm: LanguageModel, place: Any, kind: str) -> None:
    from llm.core import checkpoint

    _no_kind(kind)
    if checkpoint.has_checkpoints(place / "checkpoints"):
        raise ConfigError(
            f"{place} already holds checkpoints.", "Save to a new folder, or remove the old one."
        )
    extra = {} if lm.tokenizer is None else {"tokenizer_hash": lm.tokenizer.hash}
    if lm.tokenizer is not None:
        lm.tokenizer.save(place / "tokenizer")
    with checkpoint.Checkpointer(place / "checkpoints", asynchronous=False) as writer:
        writer.save(lm.step or 0, {"params": lm.params}, extra)
    settings = {
        "model": dataclasses.asdict(lm.config),
        "generate": {"starts_texts": lm.starts_texts},
    }
    files.write_json(place / "config.json", settings)


def _huggingface(lm: LanguageModel, place: Any, kind: str) -> None:
    from llm.models import convert
    from llm.tokenizers import huggingface

    _no_kind(kind)
    lm = _plain(lm)
    names = ("bos", "eos", "pad") if lm.tokenizer is not None else ()
    ids = {f"{name}_token_id": getattr(lm.tokenizer, f"{name}_id") for name in names}
    convert.save_hf(lm.config, lm.params, place, token_ids=ids)
    if lm.tokenizer is None:
        return
    lm.tokenizer.save(place)  # what this project opens
    if not (place / huggingface.TOKENIZER_FILE).exists():
        _describe_tokenizer(lm, place)
    template = lm.tokenizer.chat_template
    if template and not huggingface.read_settings(place).get("chat_template"):
        files.write_atomic(place / huggingface.TEMPLATE_FILE, template)


def _describe_tokenizer(lm: LanguageModel, place: Any) -> None:
    """Write tokenizer.json for transformers, by way of GGUF's description of the same tokens."""
    from llm.models import gguf_tokenizer
    from llm.tokenizers import huggingface

    try:
        metadata = gguf_tokenizer.write(lm.tokenizer, lm.config.vocab_size)
    except ConfigError:
        return  # a kind that transformers has no format for
    vocabulary = gguf_tokenizer.read(metadata, str(place))
    assert vocabulary is not None
    settings = {"add_bos_token": lm.starts_texts, **vocabulary.settings}
    files.write_json(place / huggingface.TOKENIZER_FILE, vocabulary.file)
    files.write_json(place / huggingface.SETTINGS_FILES[0], settings)


def _plain(lm: LanguageModel) -> LanguageModel:
    """Return the model as other programs know it: adapters merged, no value head."""
    lm = lm.merge()
    config = dataclasses.replace(lm.config, value_head=False)
    params = {name: part for name, part in lm.params.items() if name != "value_head"}
    return dataclasses.replace(lm, config=config, params=params)


def _gguf(lm: LanguageModel, place: Any, kind: str) -> None:
    from llm.models import gguf

    lm = _plain(lm)
    file = place if place.suffix == ".gguf" else place / "model.gguf"
    gguf.save(lm.config, lm.params, file, lm.tokenizer, kind, lm.starts_texts)


def _adapter(lm: LanguageModel, place: Any, kind: str) -> None:
    from llm.generate import attaching

    _no_kind(kind)
    attaching.save_adapter(lm, place)


def _peft(lm: LanguageModel, place: Any, kind: str) -> None:
    from llm.generate import attaching

    _no_kind(kind)
    attaching.save_peft(lm, place)


def _no_kind(kind: str) -> None:
    if kind:
        raise ConfigError(f"kind={kind!r} is for GGUF only.", 'Use format="gguf".')


FORMATS: dict[str, Callable[[LanguageModel, Any, str], None]] = {
    "native": _native,
    "hf": _huggingface,
    "gguf": _gguf,
    "adapter": _adapter,
    "peft": _peft,
}

# SPDX-License-Identifier: Apache-2.0
"""Open a tokenizer from whatever a user points at."""

import json
from collections.abc import Callable
from typing import Any

from llm import files
from llm.errors import DataError
from llm.tokenizers import base


def _sentencepiece(data: dict[str, bytes]) -> base.Codec:
    from llm.tokenizers import sentencepiece

    return sentencepiece.codec(data[sentencepiece.MODEL_FILE])


def _sentencepiece_plain(data: dict[str, bytes]) -> base.Codec:
    from llm.tokenizers import sentencepiece

    return sentencepiece.codec(data[sentencepiece.MODEL_FILE], lossless=False)


def _char(data: dict[str, bytes]) -> base.Codec:
    from llm.tokenizers import charlevel

    return charlevel.codec(json.loads(data[charlevel.ALPHABET_FILE]))


def _byte(data: dict[str, bytes]) -> base.Codec:
    from llm.tokenizers import bytelevel

    return bytelevel.tokenizer().codec


def _huggingface(data: dict[str, bytes]) -> base.Codec:
    from llm.tokenizers import huggingface

    return huggingface.codec(data)


KINDS: dict[str, Callable[[dict[str, bytes]], base.Codec]] = {
    "sentencepiece": _sentencepiece,
    "sentencepiece_plain": _sentencepiece_plain,
    "char": _char,
    "byte": _byte,
    "huggingface": _huggingface,
}


def load(source: Any) -> base.Tokenizer:
    """Open a tokenizer.

    Args:
        source: "byte"; a folder written by `Tokenizer.save`, or a workdir that holds one as
            `tokenizer/`; a Hugging Face folder with `tokenizer.json`; a `*.json` or `*.model` file.

    Raises:
        DataError: nothing there can be opened as a tokenizer.
    """
    if str(source) == "byte":
        from llm.tokenizers import bytelevel

        return bytelevel.tokenizer()
    place = files.path(source)
    if place.is_dir():
        return _load_folder(place)
    if not place.exists():
        raise DataError(
            f"The tokenizer {place} does not exist.",
            'Train one with scripts/tokenizer.py, or use "byte".',
        )
    if place.suffix == ".model":
        return _load_model(place)
    if place.suffix == ".json":
        from llm.tokenizers import huggingface

        return huggingface.load(place)
    raise DataError(
        f"{place} is not a tokenizer.", "Give a folder, a tokenizer.json or a *.model file."
    )


def _load_folder(folder: Any) -> base.Tokenizer:
    if (folder / "meta.json").exists():
        return _load_saved(folder)
    if (folder / "tokenizer" / "meta.json").exists():
        return _load_saved(folder / "tokenizer")
    if (folder / "tokenizer.json").exists():
        from llm.tokenizers import huggingface

        return huggingface.load(folder / "tokenizer.json")
    models = sorted(folder.glob("*.model"))
    if len(models) == 1:
        return _load_model(models[0])
    raise DataError(
        f"{folder} holds no tokenizer (no meta.json, tokenizer.json or single *.model).",
        "Train one with scripts/tokenizer.py, or point at the folder that has it.",
    )


def _load_saved(folder: Any) -> base.Tokenizer:
    meta = files.read_json(folder / "meta.json")
    kind = meta.get("kind") if isinstance(meta, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(
            f"{folder / 'meta.json'} names the unknown tokenizer kind {kind!r}.",
            f"This version reads {', '.join(KINDS)}.",
        )
    names = meta.get("files")
    if not isinstance(names, list) or not all(map(_plain_name, names)):
        raise DataError(
            f"{folder / 'meta.json'} lists no files of its folder.", "Copy or train it again."
        )
    try:
        data = {name: (folder / name).read_bytes() for name in names}
        codec = KINDS[kind](data)
    except (OSError, KeyError) as error:
        raise DataError(
            f"The tokenizer in {folder} is incomplete: {error}.", "Copy or train it again."
        ) from error
    return base.restore(codec, meta, str(folder))


def _plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _load_model(place: Any) -> base.Tokenizer:
    from llm.tokenizers import huggingface, sentencepiece

    settings = huggingface.read_settings(place.parent)
    return sentencepiece.from_model(place.read_bytes(), huggingface.chat_template(settings))

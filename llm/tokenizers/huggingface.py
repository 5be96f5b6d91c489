# SPDX-License-Identifier: Apache-2.0
"""Tokenizers of the Hugging Face format: tokenizer.json with tokenizer_config.json beside it."""

import contextlib
import functools
import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers

from llm.errors import DataError
from llm.tokenizers import base

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json")
TEMPLATE_FILE = "chat_template.jinja"
# Where the settings name no end token.
_USUAL_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>")
_ENDS_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endofturn|>",
)

_SECRET = secrets.token_hex(16)  # begins names that no text can hold


def load(place: Any) -> base.Tokenizer:
    """Open a tokenizer.json and the settings in its folder.

    Raises:
        DataError: the file is not a tokenizer, or no end token can be found.
    """
    data = {TOKENIZER_FILE: place.read_bytes()}
    for name in (*SETTINGS_FILES, TEMPLATE_FILE):
        if (place.parent / name).exists():
            data[name] = (place.parent / name).read_bytes()
    settings = read_settings(place.parent)
    inner = codec(data)
    model = _open(data[TOKENIZER_FILE])
    special = _special_tokens(model, settings)
    eos = _id(model, settings.get("eos_token"))
    if eos is None:
        eos = next((special[name] for name in _USUAL_ENDS if name in special), None)
    if eos is None:
        raise DataError(
            f"{place} names no end-of-text token.", 'Add "eos_token" to tokenizer_config.json.'
        )
    pad = _id(model, settings.get("pad_token"))
    return base.Tokenizer(
        inner,
        special,
        pad_id=eos if pad is None else pad,
        bos_id=_id(model, settings.get("bos_token")),
        eos_id=eos,
        stop_ids=[special[name] for name in _ENDS_OF_TURN if name in special],
        chat_template=chat_template(settings),
    )


def codec(data: dict[str, bytes]) -> base.Codec:
    """Return the codec of a tokenizer.json, and of the settings files beside it, given as bytes.

    Raises:
        DataError: the bytes are not a tokenizer.
    """
    marked = _open(data[TOKENIZER_FILE])
    special = set(_special_tokens(marked, _settings(data)))
    file = json.loads(data[TOKENIZER_FILE])
    fallback = {f"<0x{value:02X}>" for value in range(256)} | {_unknown(file["model"])}
    plain = _open(_without_special(file, special))
    plain.encode_special_tokens = True  # the strings of special tokens are ordinary text
    vocabulary = marked.get_vocab(with_added_tokens=True)
    pieces = {index: name for name, index in vocabulary.items()}
    return base.Codec(
        kind="huggingface",
        vocab_size=max(pieces) + 1,
        encode_batch=functools.partial(_encode_batch, plain),
        decode=functools.partial(_decode, marked),
        piece=functools.partial(_piece, pieces),
        files=data,
        fallback_ids=frozenset(vocabulary[name] for name in fallback & vocabulary.keys()),
        encode_rendered=functools.partial(_encode_rendered, marked),
    )


def _special_tokens(model: tokenizers.Tokenizer, settings: dict[str, Any]) -> dict[str, int]:
    """Return the tokens that plain text must not produce: string -> id."""
    special = {
        token.content: index
        for index, token in model.get_added_tokens_decoder().items()
        if token.special
    }
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        index = _id(model, settings.get(role))
        if index is not None:
            special[_name(settings[role])] = index
    return special


def _unknown(model: dict[str, Any]) -> str:
    """Return the token that stands for what the vocabulary lacks; "" for none."""
    index = model.get("unk_id")
    return model["vocab"][index][0] if index is not None else model.get("unk_token") or ""


def _without_special(file: dict[str, Any], special: set[str]) -> bytes:
    """Rename special tokens in the model's own vocabulary, so that no text can spell them.

    Leaving added tokens alone is not enough: a unigram model takes any piece it finds in a text, a
    byte-pair model any that its merges make.
    """
    model = file["model"]
    vocab = model["vocab"]
    listed = isinstance(vocab, list)  # unigram: [piece, score] by id
    names = special & set(dict(vocab) if listed else vocab)
    secret = {name: f"{_SECRET}{number}" for number, name in enumerate(sorted(names))}
    if listed:
        model["vocab"] = [[secret.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {secret.get(piece, piece): index for piece, index in vocab.items()}
    if model.get("unk_token") in secret:
        model["unk_token"] = secret[model["unk_token"]]
    if secret and model.get("merges"):
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [pair for pair in pairs if not names & {*pair, "".join(pair)}]
    file["added_tokens"] = [
        {**token, "special": token["special"] or token["content"] in special}
        for token in file.get("added_tokens", [])
        if token["content"] not in names
    ]
    file["post_processor"] = None  # names special tokens
    return json.dumps(file, ensure_ascii=False).encode("utf-8")


def read_settings(folder: Any) -> dict[str, Any]:
    """Return what the settings files of a folder say; {} where there are none.

    Raises:
        DataError: a settings file is not JSON.
    """
    present = {
        name: (folder / name).read_bytes()
        for name in (*SETTINGS_FILES, TEMPLATE_FILE)
        if (folder / name).exists()
    }
    return _settings(present, f"{folder}/")


def _settings(data: dict[str, bytes], place: str = "") -> dict[str, Any]:
    """Return what settings files say, given as bytes."""
    settings: dict[str, Any] = {}
    for name in reversed(SETTINGS_FILES):  # the first named wins
        if name in data:
            try:
                found = json.loads(data[name])
            except ValueError as error:
                raise DataError(
                    f"{place}{name} is not valid JSON: {error}.", "Copy the file again."
                ) from error
            if not isinstance(found, dict):
                raise DataError(f"{place}{name} is not a JSON object.", "Copy the file again.")
            settings |= {key: value for key, value in found.items() if value is not None}
    if TEMPLATE_FILE in data:
        settings["chat_template"] = data[TEMPLATE_FILE].decode("utf-8", "replace")
    return settings


def chat_template(settings: dict[str, Any]) -> str:
    """Return the chat template; of several named ones the one called "default"."""
    template = settings.get("chat_template") or ""
    if isinstance(template, list):
        items = [item for item in template if isinstance(item, dict)]
        named = {str(item.get("name")): item.get("template", "") for item in items}
        template = named.get("default") or next(iter(named.values()), "")
    return str(template)


def _open(data: bytes) -> tokenizers.Tokenizer:
    try:
        with _panics("open itself"):
            model = tokenizers.Tokenizer.from_buffer(data)
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{TOKENIZER_FILE} cannot be read: {str(error)[:200]}.", "Copy the file again."
        ) from error
    model.no_truncation()
    model.no_padding()
    return model


def _name(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _id(model: tokenizers.Tokenizer, token: Any) -> int | None:
    return model.token_to_id(_name(token)) if token else None


@contextlib.contextmanager
def _panics(what: str) -> Iterator[None]:
    """Turn a panic of the library, which is no Exception, into an error for the user.

    A pattern in a hostile tokenizer.json that takes too many steps ends in one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"The tokenizer cannot {what}: {str(error)[:200]}.", "Use another tokenizer.json."
        ) from error


def _encode_batch(model: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    with _panics("encode this text"):
        encoded = model.encode_batch_fast(list(texts), add_special_tokens=False)
    return [item.ids for item in encoded]


def _encode_rendered(
    model: tokenizers.Tokenizer, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    with _panics("encode this text"):
        encoded = model.encode(text, add_special_tokens=False)
    return encoded.ids, encoded.offsets


def _decode(model: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    with _panics("decode these ids"):
        return model.decode(list(ids), skip_special_tokens=False)


def _piece(pieces: dict[int, str], index: int) -> str:
    return pieces.get(index, "")

# SPDX-License-Identifier: Apache-2.0
"""Vocabularies in GGUF metadata, to and from the Hugging Face tokenizer.json format. No JAX."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from llm.errors import ConfigError, DataError

# Token types of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Without a class of its own, transformers would build the model family's usual tokenizer anew.
_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
}
_SPACE = "\u2581"  # SentencePiece's mark for a space
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS: dict[str, Any] = {**_BYTES, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def _split(digits: str) -> dict[str, Any]:
    """Cut words, numbers of so many digits, signs and spaces as GPT-4 and its heirs do."""
    pattern = (
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return _sequence({**split, "invert": False}, {**_BYTES, "use_regex": False})


# tokenizer.ggml.pre -> how text is cut before byte pairs are merged.
_LLAMA3, _QWEN2 = _split(r"\p{N}{1,3}"), _split(r"\p{N}")
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _WORDS,
    "default": _WORDS,
    "olmo": _WORDS,
    "smollm": _sequence(_DIGITS, _WORDS),
    "starcoder": _sequence(_DIGITS, _WORDS),
    "refact": _sequence(_DIGITS, _WORDS),
    "command-r": _sequence(_DIGITS, _WORDS),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
}


class Vocabulary(NamedTuple):
    """A tokenizer as the two JSON files of a Hugging Face folder.

    adds_start: whether a prompt begins with the start token.
    """

    file: dict[str, Any]  # tokenizer.json
    settings: dict[str, Any]  # tokenizer_config.json
    adds_start: bool


def read(metadata: Mapping[str, Any], name: str) -> Vocabulary | None:
    """Return the vocabulary of a file's metadata, or None where there is none.

    Raises:
        ConfigError: a kind of tokenizer that is not supported.
        DataError: its parts do not fit each other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or kind == "none":
        return None
    if kind not in _READERS:
        raise ConfigError(
            f"{name} has a tokenizer of the kind {kind!r}, which is not supported.",
            "Put the model's tokenizer.json beside the file.",
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not _strings(tokens):
        raise _damaged(name, "it lists no tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise _damaged(name, "its tokens and their types do not match")
    added = [
        _added(index, token, kind_of != USER_DEFINED)
        for index, (token, kind_of) in enumerate(zip(tokens, types, strict=True))
        if kind_of in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    used = [i for i, kind_of in enumerate(types) if kind_of != UNUSED]
    model = _READERS[kind](metadata, tokens, types, name)
    model["model"]["vocab"] = {tokens[i]: i for i in used}
    if len(model["model"]["vocab"]) != len(used):
        raise _damaged(name, "a token is there twice")
    settings: dict[str, Any] = dict(_SETTINGS)
    for role, key in _ROLES.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            if not isinstance(index, int) or not 0 <= index < len(tokens):
                raise _damaged(name, f"its {key} token is {index}")
            settings[f"{role}_token"] = tokens[index]
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    start = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")
    file = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return Vocabulary({**file, "post_processor": None, **model}, settings, bool(start))


def _read_bytelevel(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], name: str
) -> dict[str, Any]:
    """Byte-level byte pairs: GPT-2 and its heirs."""
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE_TOKENIZERS:
        raise ConfigError(
            f"{name} cuts text by the rule {pre!r}, which is not supported.",
            "Put the model's tokenizer.json beside the file.",
        )
    merges = metadata.get("tokenizer.ggml.merges")
    pairs = [merge.split(" ") for merge in merges] if _strings(merges) else []
    known = set(tokens)
    for pair in pairs:
        if len(pair) != 2 or not known.issuperset(pair) or pair[0] + pair[1] not in known:
            raise _damaged(name, f"the merge {' '.join(pair)!r} is not of its tokens")
    model = {"type": "BPE", "merges": pairs, "ignore_merges": PRE_TOKENIZERS[pre] is _LLAMA3}
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "decoder": _WORDS,
        "model": {**_BPE, **model},
    }


_BPE: dict[str, Any] = {
    **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
    "fuse_unk": False,
    "byte_fallback": False,
}


def _read_sentencepiece(
    metadata: Mapping[str, Any], tokens: list[str], types: list[int], name: str
) -> dict[str, Any]:
    """SentencePiece byte pairs with byte fallback: Llama 2 and its heirs."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise _damaged(name, "its tokens and their scores do not match")
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    model = {"type": "BPE", "merges": _merges(tokens, types, scores), "byte_fallback": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**_BPE, **model, "unk_token": unknown, "fuse_unk": unknown is not None},
    }


_READERS: dict[str, Callable[..., dict[str, Any]]] = {
    "gpt2": _read_bytelevel,
    "llama": _read_sentencepiece,
}


def _merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[Any]:
    """Return the pairs that make each token, those of the best score first.

    SentencePiece merges the neighbours whose union scores highest; a list of merges, tried in
    order, says the same.
    """
    plain = {
        token: index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (NORMAL, USER_DEFINED)
    }
    found = []
    for token, index in plain.items():
        for cut in range(1, len(token)):
            left, right = plain.get(token[:cut]), plain.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[index], index, left, right))
    return [[tokens[left], tokens[right]] for _, _, left, right in sorted(found)]


def _added(index: int, content: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, **flags, "special": special}


def _strings(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _damaged(name: str, reason: str) -> DataError:
    return DataError(f"The tokenizer in {name} is damaged: {reason}.", "Download it again.")


def write(tokenizer: Any, vocab_size: int, adds_start: bool = False) -> dict[str, Any]:
    """Return the metadata that describe a tokenizer.

    Args:
        tokenizer: of `llm.tokenizers`.
        vocab_size: of the model; tokens it has beyond the tokenizer's are marked unused.

    Raises:
        ConfigError: GGUF cannot hold this kind of tokenizer.
    """
    if tokenizer.kind not in _WRITERS:
        raise _unwritable(f"a {tokenizer.kind!r} tokenizer")
    tokens: dict[int, str] = {}
    types: dict[int, int] = {}
    fields = _WRITERS[tokenizer.kind](tokenizer, tokens, types)
    for token, index in tokenizer.special_tokens.items():
        tokens[index] = token
        types[index] = UNKNOWN if types.get(index) == UNKNOWN else CONTROL
    scores = fields.pop("scores", None)
    for index in range(vocab_size):
        if index not in tokens:
            tokens[index], types[index] = f"[UNUSED{index}]", UNUSED
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "padding": tokenizer.pad_id}
    fields |= {
        "tokens": [tokens[i] for i in range(vocab_size)],
        "token_type": [types.get(i, NORMAL) for i in range(vocab_size)],
        "add_bos_token": adds_start,
        **{f"{role}_token_id": index for role, index in ids.items() if index is not None},
    }
    if scores is not None:
        fields["scores"] = [float(scores.get(i, 0.0)) for i in range(vocab_size)]
    metadata = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    if tokenizer.chat_template:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    return metadata


def _unwritable(what: str) -> ConfigError:
    return ConfigError(
        f"GGUF cannot hold {what}.",
        "Use byte-level or SentencePiece byte pairs, or save without a tokenizer.",
    )


def _write_huggingface(
    tokenizer: Any, tokens: dict[int, str], types: dict[int, int]
) -> dict[str, Any]:
    file = json.loads(tokenizer.codec.files["tokenizer.json"])
    model = file["model"]
    if model.get("type") != "BPE":
        raise _unwritable(f"a tokenizer of the model {model.get('type')!r}")
    tokens.update({index: token for token, index in model["vocab"].items()})
    for token in file.get("added_tokens", []):
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        return _write_fallback(file, tokens, types)
    cut = _signature(file.get("pre_tokenizer"))
    pre = next((name for name, rule in PRE_TOKENIZERS.items() if _signature(rule) == cut), None)
    if pre is None:
        raise _unwritable("a tokenizer that cuts text by this rule")
    return {"model": "gpt2", "pre": pre, "merges": merges}


def _signature(rule: Any) -> Any:
    """Reduce a pre-tokenizer to what decides how text is cut."""
    if isinstance(rule, Mapping):
        if rule.get("type") == "Sequence" and len(rule["pretokenizers"]) == 1:
            return _signature(rule["pretokenizers"][0])
        return {k: _signature(v) for k, v in sorted(rule.items()) if k != "trim_offsets"}
    return [_signature(item) for item in rule] if isinstance(rule, list) else rule


def _write_fallback(
    file: dict[str, Any], tokens: dict[int, str], types: dict[int, int]
) -> dict[str, Any]:
    """SentencePiece byte pairs in tokenizer.json: a token scores by when it is merged."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(file["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    byte_tokens = {f"<0x{value:02X}>" for value in range(256)}
    for index, token in tokens.items():
        if token in byte_tokens:
            types[index] = BYTE
        if token == file["model"].get("unk_token"):
            types[index] = UNKNOWN
    last = -len(ranks) - 1.0
    scores = {index: float(-ranks[t]) if t in ranks else last for index, t in tokens.items()}
    prefix = '"Prepend"' in json.dumps(file.get("normalizer"))
    return {"model": "llama", "add_space_prefix": prefix, "scores": scores}


def _write_sentencepiece(
    tokenizer: Any, tokens: dict[int, str], types: dict[int, int]
) -> dict[str, Any]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    model.LoadFromSerializedProto(tokenizer.codec.files["tokenizer.model"])
    scores = {}
    for index in range(model.vocab_size()):
        tokens[index], scores[index] = model.IdToPiece(index), float(model.GetScore(index))
        for kind, test in _PIECES.items():
            if getattr(model, test)(index):
                types[index] = kind
    normal = [score for index, score in scores.items() if types.get(index, NORMAL) == NORMAL]
    if any(score != round(score) for score in normal):  # byte pairs score -0, -1, -2, …
        raise _unwritable("a SentencePiece unigram tokenizer")
    prefix = tokenizer.kind == "sentencepiece_plain"
    return {"model": "llama", "add_space_prefix": prefix, "scores": scores}


_PIECES = {UNKNOWN: "IsUnknown", CONTROL: "IsControl", UNUSED: "IsUnused", BYTE: "IsByte"}


def _write_bytes(tokenizer: Any, tokens: dict[int, str], types: dict[int, int]) -> dict[str, Any]:
    """Plain bytes: byte-level byte pairs without any merge."""
    first = tokenizer.encode("\0")[0]
    tokens.update({first + value: name for value, name in enumerate(_byte_names())})
    return {"model": "gpt2", "pre": "gpt-2", "merges": []}


def _byte_names() -> list[str]:
    """Return the characters that byte-level vocabularies write the 256 bytes as (GPT-2's)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(value if value in shown else next(others)) for value in range(256)]


_WRITERS: dict[str, Callable[..., dict[str, Any]]] = {
    "huggingface": _write_huggingface,
    "sentencepiece": _write_sentencepiece,
    "sentencepiece_plain": _write_sentencepiece,
    "byte": _write_bytes,
}

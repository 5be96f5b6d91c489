# SPDX-License-Identifier: Apache-2.0
"""The character-level tokenizer: one token per character of a text, bytes for all others."""

import functools
import json
from collections.abc import Iterable, Sequence

import numpy as np

from llm.errors import DataError
from llm.tokenizers import base

ALPHABET_FILE = "characters.json"
_BYTES = len(base.SPECIAL_TOKENS)  # id of byte 0
_FIRST = _BYTES + 256  # id of the first character


def train(texts: Iterable[str], *, vocab_size: int = 0) -> base.Tokenizer:
    """Make a token of every character of the texts.

    Args:
        vocab_size: keep the most frequent characters only; 0 keeps all.

    Raises:
        DataError: there is no text.
    """
    counts: dict[str, int] = {}
    for text in texts:
        values, numbers = np.unique(_code_points(text), return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[chr(value)] = counts.get(chr(value), 0) + number
    if not counts:
        raise DataError(
            "There is no text to take characters from.",
            "Check data.path: the documents are missing or empty.",
        )
    kept = sorted(counts, key=lambda item: (-counts[item], item))
    if vocab_size:
        kept = kept[: max(1, vocab_size - _FIRST)]
    return base.ours(codec("".join(sorted(kept))))


def codec(alphabet: str) -> base.Codec:
    """Return the codec with one token per character of the alphabet, after the 256 bytes."""
    points = _code_points(alphabet)
    table = np.full(int(points.max()) + 1, -1, np.int32)
    table[points] = np.arange(_FIRST, _FIRST + len(points), dtype=np.int32)
    encoded = [bytes([value]) for value in range(256)] + [item.encode("utf-8") for item in alphabet]
    return base.Codec(
        kind="char",
        vocab_size=_FIRST + len(alphabet),
        encode_batch=functools.partial(_encode_batch, table),
        decode=functools.partial(_decode, encoded),
        piece=functools.partial(_piece, alphabet),
        files={ALPHABET_FILE: json.dumps(alphabet).encode("utf-8")},
        fallback_ids=frozenset(range(_BYTES, _FIRST)),
    )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _encode_batch(table: np.ndarray, texts: Sequence[str]) -> list[list[int]]:
    return [_encode(table, text) for text in texts]


def _encode(table: np.ndarray, text: str) -> list[int]:
    points = _code_points(text)
    known = points < len(table)
    ids = np.where(known, table[np.where(known, points, 0)], -1)
    missing = np.flatnonzero(ids < 0)
    if not missing.size:
        return ids.tolist()
    result: list[int] = []
    start = 0
    for place in missing.tolist():
        result += ids[start:place].tolist()
        result += [_BYTES + value for value in text[place].encode("utf-8")]
        start = place + 1
    return result + ids[start:].tolist()


def _decode(encoded: list[bytes], ids: Sequence[int]) -> str:
    return b"".join([encoded[index - _BYTES] for index in ids]).decode("utf-8", "replace")


def _piece(alphabet: str, index: int) -> str:
    return alphabet[index - _FIRST] if index >= _FIRST else f"<0x{index - _BYTES:02X}>"

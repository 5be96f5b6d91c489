# SPDX-License-Identifier: Apache-2.0
"""The byte-level tokenizer: one token per UTF-8 byte, no file and no training."""

from collections.abc import Sequence

from llm.tokenizers import base

OFFSET = len(base.SPECIAL_TOKENS)


def tokenizer() -> base.Tokenizer:
    """Return the byte-level tokenizer: ids 0..15 are special, byte b is id 16 + b."""
    codec = base.Codec(
        kind="byte",
        vocab_size=OFFSET + 256,
        encode_batch=_encode_batch,
        decode=_decode,
        piece=_piece,
        files={},
    )
    return base.ours(codec)


def _encode_batch(texts: Sequence[str]) -> list[list[int]]:
    return [[OFFSET + value for value in text.encode("utf-8")] for text in texts]


def _decode(ids: Sequence[int]) -> str:
    return bytes(index - OFFSET for index in ids).decode("utf-8", "replace")


def _piece(index: int) -> str:
    value = index - OFFSET
    return chr(value) if 32 <= value < 127 else f"<0x{value:02X}>"

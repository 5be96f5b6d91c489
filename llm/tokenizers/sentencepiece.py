# SPDX-License-Identifier: Apache-2.0
"""SentencePiece models: training BPE and unigram with byte fallback, and opening any `*.model`."""

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from llm.errors import ConfigError, DataError
from llm.tokenizers import base

MODEL_FILE = "tokenizer.model"
ALGORITHMS = ("bpe", "unigram")
# SentencePiece writes a space as U+2581. A real U+2581 in the text would come back as a space, so
# it is spelled with its three byte tokens instead.
_SPACE_MARK = "\u2581"
_CHUNK = 4096  # characters a training sentence may have
# Fixed: the sums of the unigram trainer depend on how many threads share the work.
_TRAINING_THREADS = 4


def train(
    texts: Iterable[str],
    *,
    name: str = "bpe",
    vocab_size: int = 8192,
    split_digits: bool = True,
    character_coverage: float = 0.9995,
    max_piece_length: int = 16,
) -> base.Tokenizer:
    """Train a lossless SentencePiece tokenizer.

    Texts are taken as they are: no normalisation, no added or removed whitespace. Characters
    outside the vocabulary are spelled as bytes, so nothing is unencodable.

    Args:
        name: the algorithm, "bpe" or "unigram".
        vocab_size: tokens including the special tokens and 256 bytes; a text too small for so many
            gives fewer.
        split_digits: one token per digit.
        character_coverage: share of the text's characters that get a token of their own.
        max_piece_length: longest token, in characters.

    Raises:
        ConfigError: an option is out of range.
        DataError: there is no text to train on.
    """
    smallest = len(base.SPECIAL_TOKENS) + 256 + 16
    if name not in ALGORITHMS:
        raise ConfigError(f"tokenizer.name is {name!r}.", f"Known: {', '.join(ALGORITHMS)}.")
    if vocab_size < smallest:
        raise ConfigError(
            f"tokenizer.vocab_size is {vocab_size}, below the special tokens and bytes.",
            f"Choose at least {smallest}, or the byte-level tokenizer.",
        )
    model = io.BytesIO()
    sentences = _count(_sentences(texts))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=name,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            split_digits=split_digits,
            character_coverage=character_coverage,
            max_sentencepiece_length=max_piece_length,
            max_sentence_length=8 * _CHUNK,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=base.SPECIAL_TOKENS[0],
            bos_piece=base.SPECIAL_TOKENS[1],
            eos_piece=base.SPECIAL_TOKENS[2],
            unk_piece=base.SPECIAL_TOKENS[3],
            control_symbols=list(base.SPECIAL_TOKENS[4:]),
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        if not sentences.seen:
            raise DataError(
                "There is no text to train a tokenizer on.",
                "Check data.path: the documents are missing or empty.",
            ) from error
        reason = str(error).strip().splitlines()[-1][:200]
        raise DataError(
            f"SentencePiece cannot train on this text: {reason}",
            "Give it more text, or a smaller tokenizer.vocab_size.",
        ) from error
    return base.ours(codec(model.getvalue()))


def codec(model: bytes, lossless: bool = True) -> base.Codec:
    """Return the codec of a serialised model.

    Args:
        lossless: the model was trained by `train`; False follows the library's own decoding, which
            undoes the space that most published models add in front of a text.

    Raises:
        DataError: the bytes are not a SentencePiece model.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise DataError(
            "The tokenizer model is not a SentencePiece model.", "Copy or train it again."
        ) from error
    size = processor.vocab_size()
    pieces = [processor.id_to_piece(index) for index in range(size)]
    byte_ids = {
        int(pieces[index][3:5], 16): index for index in range(size) if processor.is_byte(index)
    }
    if lossless:
        table = [piece.replace(_SPACE_MARK, " ").encode("utf-8") for piece in pieces]
        for value, index in byte_ids.items():
            table[index] = bytes([value])
        decode = functools.partial(_decode_bytes, table)
        mark = [byte_ids[value] for value in _SPACE_MARK.encode("utf-8")]
    else:
        decode = functools.partial(_decode_plain, processor)
        mark = []
    return base.Codec(
        kind="sentencepiece" if lossless else "sentencepiece_plain",
        vocab_size=size,
        encode_batch=functools.partial(_encode_batch, processor, mark),
        decode=decode,
        piece=functools.partial(_piece, pieces),
        files={MODEL_FILE: model},
        fallback_ids=frozenset(byte_ids.values()),
    )


def from_model(model: bytes, chat_template: str = "") -> base.Tokenizer:
    """Return the tokenizer of a published `*.model`, special tokens as the model marks them.

    Raises:
        DataError: the bytes are not a SentencePiece model, or it has no end token.
    """
    inner = codec(model, lossless=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    special = {
        processor.id_to_piece(index): index
        for index in range(inner.vocab_size)
        if processor.is_control(index) or processor.is_unknown(index)
    }
    if processor.eos_id() < 0:
        raise DataError(
            "The SentencePiece model has no end-of-text token.", "Train it with eos_id >= 0."
        )
    ends = [special[name] for name in (base.END_OF_TURN, "<|im_end|>") if name in special]
    return base.Tokenizer(
        inner,
        special,
        pad_id=max(processor.pad_id(), 0),
        bos_id=processor.bos_id() if processor.bos_id() >= 0 else None,
        eos_id=processor.eos_id(),
        stop_ids=ends,
        chat_template=chat_template,
    )


class _count:
    """Iterate while counting, so that an empty input can be told from a refused one."""

    def __init__(self, items: Iterator[str]):
        self.items, self.seen = items, 0

    def __iter__(self) -> "_count":
        return self

    def __next__(self) -> str:
        item = next(self.items)
        self.seen += 1
        return item


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Cut texts into training sentences, at line ends where there are any."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + _CHUNK
            if end < len(text):
                newline = text.rfind("\n", start + 1, end)
                end = newline + 1 if newline > start else end
            yield text[start:end].replace("\0", "")
            start = end


def _encode_batch(
    processor: sentencepiece.SentencePieceProcessor, mark: list[int], texts: Sequence[str]
) -> list[list[int]]:
    if not texts:
        return []
    threads = min(len(texts), os.cpu_count() or 1)
    if not mark or not any(_SPACE_MARK in text for text in texts):
        return processor.encode(list(texts), num_threads=threads)
    parts = [re.split(f"({_SPACE_MARK})", text) for text in texts]
    flat = iter(processor.encode([part for group in parts for part in group], num_threads=threads))
    encoded = []
    for group in parts:
        ids: list[int] = []
        for part in group:
            plain = next(flat)
            ids += mark if part == _SPACE_MARK else plain
        encoded.append(ids)
    return encoded


def _decode_bytes(table: list[bytes], ids: Sequence[int]) -> str:
    return b"".join([table[index] for index in ids]).decode("utf-8", "replace")


def _decode_plain(processor: sentencepiece.SentencePieceProcessor, ids: Sequence[int]) -> str:
    return processor.decode(list(ids))


def _piece(pieces: list[str], index: int) -> str:
    return pieces[index].replace(_SPACE_MARK, " ")

# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of this project as a SeqIO vocabulary. Imports TensorFlow."""

from collections.abc import Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from llm.tokenizers.base import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
    """Adapts a tokenizer to SeqIO; decoding stops after the first end token, as SeqIO has it."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int | None:
        special = self.tokenizer.special_tokens
        return special.get("<unk>", special.get("[UNK]"))

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        ids = tf.numpy_function(self._encode_bytes, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        texts = tf.numpy_function(self._decode_rows, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts

    def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
        content: bytes = np.asarray(text, object).item()  # eager calls give a 0-d array
        return np.asarray(self.tokenizer.encode(content.decode("utf-8", "replace")), np.int32)

    def _decode_rows(self, ids: np.ndarray) -> np.ndarray:
        rows = ids.reshape(-1, ids.shape[-1])
        texts = [self.tokenizer.decode(row.tolist()).encode("utf-8") for row in rows]
        return np.asarray(texts, object).reshape(ids.shape[:-1])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenizerVocabulary) and other.tokenizer.hash == self.tokenizer.hash
        )

    def __hash__(self) -> int:
        return hash(self.tokenizer.hash)

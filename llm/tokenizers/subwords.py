# SPDX-License-Identifier: Apache-2.0
"""Training of byte-level byte pairs (GPT-2's kind) and WordPiece (BERT's), by `tokenizers`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm.errors import ConfigError, DataError
from llm.tokenizers import base, huggingface

_CONTINUES = "##"  # WordPiece's mark of a piece that does not begin a word
_BATCH = 1000


def train_byte_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int = 32_000,
    min_frequency: int = 2,
    split_digits: bool = False,
) -> base.Tokenizer:
    """Train byte-level byte pairs: lossless, and never an unknown character.

    Text is cut as GPT-2 does, and merges do not cross the cuts.

    Args:
        vocab_size: tokens including the special tokens and 256 bytes; a text too small for so many
            gives fewer.
        min_frequency: how often a pair must occur to be merged.
        split_digits: one token per digit.

    Raises:
        ConfigError: the vocabulary is smaller than its fixed part.
        DataError: there is no text to train on.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(vocab_size, len(base.SPECIAL_TOKENS) + len(alphabet))
    model = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    model.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if split_digits else words
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(base.SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(_counted(map(base.storable, texts)), trainer)
    model.post_processor = _frame(f"{base.BOS} $A", f"{base.BOS} $A $B:1")
    return _finished(json.loads(model.to_str()))


def train_wordpiece(
    texts: Iterable[str],
    *,
    vocab_size: int = 30_000,
    min_frequency: int = 2,
    lowercase: bool = True,
    max_alphabet: int = 1000,
) -> base.Tokenizer:
    """Train WordPiece: words cut at spaces and signs; what it does not know becomes `<unk>`.

    The library's trainer numbers the pieces of one character in an order that changes from run to
    run, and breaks ties between equally frequent pairs by those numbers. Here they are numbered in
    the order of their code points, so that equal texts give equal tokenizers.

    Args:
        vocab_size: tokens including the special tokens.
        min_frequency: how often a pair must occur to be merged.
        lowercase: of all text, which also loses its accents, as BERT's uncased models do.
        max_alphabet: keep the most frequent characters only.

    Raises:
        ConfigError: the vocabulary is smaller than its alphabet.
        DataError: there is no text to train on.
    """
    model = tokenizers.Tokenizer(models.WordPiece(unk_token=base.SPECIAL_TOKENS[3]))
    model.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece(prefix=_CONTINUES)
    kept = [base.storable(text) for text in texts]
    words = _words(model, _counted(kept))
    alphabet = _alphabet(words, max_alphabet)
    inner = {_CONTINUES + mark for word in words for mark in word[1:]}
    fixed = [*base.SPECIAL_TOKENS, *sorted(p for p in inner if p[len(_CONTINUES) :] in alphabet)]
    _check_size(vocab_size, len(fixed) + len(alphabet))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=fixed,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUES,
        show_progress=False,
    )
    model.train_from_iterator(kept, trainer)
    model.post_processor = _frame(
        f"{base.BOS} $A {base.EOS}", f"{base.BOS} $A {base.EOS} $B:1 {base.EOS}:1"
    )
    return _finished(json.loads(model.to_str()))


def _finished(file: dict[str, Any]) -> base.Tokenizer:
    """Return the tokenizer of a trained tokenizer.json."""
    file["added_tokens"] = file["added_tokens"][: len(base.SPECIAL_TOKENS)]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": base.BOS,
        "eos_token": base.EOS,
        "pad_token": base.PAD,
        "unk_token": base.SPECIAL_TOKENS[3],
        "mask_token": "<|mask|>",
        "clean_up_tokenization_spaces": False,
    }
    data = {
        huggingface.TOKENIZER_FILE: json.dumps(file, ensure_ascii=False).encode("utf-8"),
        huggingface.SETTINGS_FILES[0]: json.dumps(settings, indent=2).encode("utf-8"),
    }
    return base.ours(huggingface.codec(data))


def _frame(single: str, pair: str) -> processors.TemplateProcessing:
    """Return what other programs put around a text; this project adds its own."""
    ids = [(name, base.SPECIAL_TOKENS.index(name)) for name in (base.BOS, base.EOS)]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _check_size(vocab_size: int, fixed: int) -> None:
    if vocab_size < fixed:
        raise ConfigError(
            f"tokenizer.vocab_size is {vocab_size}, below its {fixed} special tokens and pieces of "
            "one character.",
            f"Choose at least {fixed}.",
        )


def _counted(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts that are not empty.

    Raises:
        DataError: there is none.
    """
    seen = False
    for text in texts:
        if text:
            seen = True
            yield text
    if not seen:
        raise DataError(
            "There is no text to train a tokenizer on.",
            "Check data.path: the documents are missing or empty.",
        )


def _words(model: tokenizers.Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Count the words that a model's rules cut texts into."""
    cut, normalise = model.pre_tokenizer.pre_tokenize_str, model.normalizer.normalize_str
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in cut(normalise(text)))
    return words


def _alphabet(words: Counter[str], size: int) -> set[str]:
    """Return the most frequent characters; among equals, the first in code point order."""
    counts: Counter[str] = Counter()
    for word, number in words.items():
        for mark in word:
            counts[mark] += number
    return set(sorted(counts, key=lambda mark: (-counts[mark], mark))[:size])

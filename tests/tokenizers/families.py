# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers built the way each model family publishes its own, without this project's code.

Every builder returns the tokenizer.json, the special tokens' settings, and a reference: a function
from a text to the ids it should have when special-token strings in it are ordinary characters.
"""

import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    implementations,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)


class Family(NamedTuple):
    """One published form: its two files and what its texts should become."""

    file: dict[str, Any]
    settings: dict[str, Any]
    reference: Callable[[str], list[int]]


CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def plain(model: Tokenizer) -> Callable[[str], list[int]]:
    """Encode with the library before any special token is registered."""
    file = json.loads(model.to_str())
    file["added_tokens"], file["post_processor"] = [], None
    bare = Tokenizer.from_str(json.dumps(file))
    return lambda text: bare.encode(text, add_special_tokens=False).ids


def byte_level(texts, cut, special, first=(), normalizer=None, ignore_merges=False) -> Family:
    model = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    model.pre_tokenizer = cut
    model.decoder = decoders.ByteLevel()
    if normalizer is not None:
        model.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    reference = plain(model)
    model.add_special_tokens(list(special))
    settings = {"eos_token": special[-1], "bos_token": special[0]}
    return Family(json.loads(model.to_str()), settings, reference)


def regex_cut(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT % digits), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2(texts) -> Family:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return byte_level(texts, cut, ["<|endoftext|>"], first=["<|endoftext|>"])


def smollm2(texts) -> Family:
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(texts, cut, special, first=special)


def llama3(texts) -> Family:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(texts, regex_cut(r"\p{N}{1,3}"), special, ignore_merges=True)


def qwen2(texts) -> Family:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(texts, regex_cut(r"\p{N}"), special, normalizer=normalizers.NFC())


def bert(texts) -> Family:
    model = implementations.BertWordPieceTokenizer()
    model.train_from_iterator(texts, vocab_size=900, show_progress=False)
    reference = plain(model._tokenizer)
    model.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    settings = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return Family(json.loads(model.to_str()), settings | {"unk_token": "[UNK]"}, reference)


def t5(texts) -> Family:
    special = ["<pad>", "</s>", "<unk>"]
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    file = json.loads(model.to_str())
    # The reference's vocabulary has no special token at all, but for the unknown one at its end.
    vocab = [(piece, score) for piece, score in file["model"]["vocab"]]
    bare = Tokenizer(models.Unigram([*vocab[3:], ("\x00" * 9, 0.0)], unk_id=len(vocab) - 3))
    bare.normalizer, bare.pre_tokenizer = model.normalizer, model.pre_tokenizer

    def reference(text: str) -> list[int]:
        found = bare.encode(text).ids
        return [2 if index == len(vocab) - 3 else index + 3 for index in found]

    # As published, the sentinels stand in the model's vocabulary too, with the best score of all.
    extra = ["<extra_id_1>", "<extra_id_0>"]
    file["model"]["vocab"] += [[name, 0.0] for name in extra]
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    file["added_tokens"] += [
        {"id": len(vocab) + i, "content": name, "special": True, **form}
        for i, name in enumerate(extra)
    ]
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return Family(file, settings, reference)


def sentencepiece_family(texts, prefix: bool, control=(), own=()) -> Family:
    """Train SentencePiece byte pairs and write them as the Llama 2 and Gemma files are."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines() if line),
        model_writer=written,
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        control_symbols=list(control),
        user_defined_symbols=list(own),
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocab = {model.IdToPiece(i): i for i in range(model.GetPieceSize())}
    merges = []
    for piece, index in vocab.items():
        if model.IsControl(index) or model.IsUnknown(index) or model.IsByte(index):
            continue
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(vocab[a], vocab[b], a, b) for a, b in pairs if a in vocab and b in vocab]
        merges += [(-model.GetScore(index), a, b) for _, _, a, b in sorted(known)]
    merges.sort(key=lambda merge: merge[0])
    spaces = normalizers.Replace(" ", "\u2581")
    made = Tokenizer(
        models.BPE(
            vocab,
            [(a, b) for _, a, b in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces])
    if not prefix:
        made.normalizer = spaces
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prefix else [])
    )
    made.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>", *control)]
    )
    made.add_tokens([AddedToken(name, normalized=False) for name in own])
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Family(json.loads(made.to_str()), settings, model.EncodeAsIds)


def llama2(texts) -> Family:
    return sentencepiece_family(texts, prefix=True)


def gemma(texts) -> Family:
    own = ("\n\n", "\t", "<b>", "\u2581\u2581")
    return sentencepiece_family(texts, False, ("<start_of_turn>", "<end_of_turn>"), own)


FAMILIES: dict[str, Callable[[list[str]], Family]] = {
    "gpt2": gpt2,
    "smollm2": smollm2,
    "llama2": llama2,
    "llama3": llama3,
    "qwen2": qwen2,
    "gemma": gemma,
    "bert": bert,
    "t5": t5,
}

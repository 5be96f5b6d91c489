# SPDX-License-Identifier: Apache-2.0
"""Byte-level byte pairs and WordPiece: trained as `tokenizers` trains them, and reproducible."""

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
import tokenizers
from tokenizers import implementations, models, normalizers, pre_tokenizers, trainers

import llm.tokenizers
from llm.core import config as configs
from llm.errors import ConfigError, DataError
from llm.tokenizers import measure, stage, subwords
from llm.tokenizers.base import SPECIAL_TOKENS

HASHES = """
import sys
from pydoc_data import topics
from llm.tokenizers import subwords
texts = [text for _, text in sorted(topics.topics.items())][:25]
print(subwords.train_byte_bpe(texts, vocab_size=900).hash)
print(subwords.train_wordpiece(texts, vocab_size=900).hash)
"""


def trained_file(tokenizer):
    return json.loads(tokenizer.codec.files["tokenizer.json"])


@pytest.mark.parametrize("split_digits", [False, True])
def test_byte_pairs_equal_a_direct_call_of_the_library(texts, split_digits):
    reference = implementations.ByteLevelBPETokenizer()
    if split_digits:
        reference._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    reference.train_from_iterator(
        texts, vocab_size=1200, show_progress=False, special_tokens=list(SPECIAL_TOKENS)
    )
    ours = subwords.train_byte_bpe(texts, vocab_size=1200, split_digits=split_digits)
    file, theirs = trained_file(ours), json.loads(reference.to_str())
    assert len(file["model"]["merges"]) > 800
    assert file["model"]["vocab"] == theirs["model"]["vocab"]
    assert file["model"]["merges"] == theirs["model"]["merges"]
    for text in texts:
        assert ours.encode(text) == reference.encode(text).ids


def brute_force_wordpiece(words, vocab_size, min_frequency):
    """Merge the most frequent pair, over and over; among equals that of the smallest ids."""
    inner = sorted({"##" + mark for word in words for mark in word[1:]})
    vocab = [*SPECIAL_TOKENS, *inner, *sorted({mark for word in words for mark in word})]
    ids = {piece: index for index, piece in enumerate(vocab)}
    split = {word: [word[0], *("##" + mark for mark in word[1:])] for word in words}
    while len(vocab) < vocab_size:
        pairs = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        if pairs[best] < min_frequency:
            break
        new = best[0] + best[1].removeprefix("##")
        if new not in ids:  # two pairs may make the same piece
            ids[new] = len(vocab)
            vocab.append(new)
        for word, parts in split.items():
            merged = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] = new
                else:
                    merged.append(part)
            split[word] = merged
    return ids


def test_wordpiece_equals_a_brute_force_search(texts):
    sample = [text.replace("=", " ") for text in texts[:4]]
    cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    normal = normalizers.BertNormalizer().normalize_str
    words = Counter(word for text in sample for word, _ in cut(normal(text)))
    ours = subwords.train_wordpiece(sample, vocab_size=400)
    assert trained_file(ours)["model"]["vocab"] == brute_force_wordpiece(words, 400, 2)


def test_wordpiece_equals_a_direct_call_of_the_library_where_no_counts_tie():
    """With ties, the library's own result changes from run to run."""
    words = {}
    for number, letters in enumerate(("abcd", "efgh", "ijkl", "mnop")):
        for length in range(1, 5):  # a, ab, abc, abcd: later pairs are always rarer
            words[letters[:length]] = 3 ** (4 - length) * 40 + 17 * number
    corpus = [" ".join([word] * count) for word, count in words.items()]
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model.train_from_iterator(
        corpus,
        trainers.WordPieceTrainer(
            vocab_size=80, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        ),
    )
    ours = subwords.train_wordpiece(corpus, vocab_size=80)
    assert set(trained_file(ours)["model"]["vocab"]) == set(model.get_vocab())
    text = "abcd abc mno ef xyz"
    pieces = model.encode(text).tokens
    assert [ours.piece(index) for index in ours.encode(text)] == pieces


def test_training_is_the_same_in_any_process_and_with_any_number_of_workers(texts):
    found = set()
    for workers in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", HASHES],
            capture_output=True,
            text=True,
            env={**os.environ, "RAYON_NUM_THREADS": workers, "TOKENIZERS_PARALLELISM": "true"},
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_wordpiece_forgets_case_and_spaces_but_never_makes_special_tokens(trained):
    tokenizer = trained["wordpiece"]
    text = "The HELP  topics,\n café </s> <unk> [MASK] <|end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids).startswith("the help topics, cafe")
    assert not set(tokenizer.special_tokens.values()) & set(ids)
    unknown = tokenizer.special_tokens["<unk>"]
    assert tokenizer.encode("a ☃ b")[1] == unknown
    report = measure.fertility(tokenizer, [{"text": "a ☃ b", "source": ""}])
    assert report["all"]["byte_fallback"] == round(1 / 3, 6)
    assert report["all"]["round_trip"] == 0.0
    cased = subwords.train_wordpiece(["The Help"] * 9, vocab_size=60, lowercase=False)
    assert cased.decode(cased.encode("The Help")) == "The Help"


def test_an_alphabet_may_be_cut(texts):
    tokenizer = subwords.train_wordpiece(["aaab aaac zq"] * 5, vocab_size=60, max_alphabet=3)
    known = {tokenizer.piece(index) for index in range(16, tokenizer.vocab_size)}
    assert {"a", "b", "c"} <= known and not {"z", "q", "##q"} & known
    assert tokenizer.encode("zq") == [tokenizer.special_tokens["<unk>"]]


@pytest.mark.parametrize("name", ["byte_bpe", "wordpiece"])
def test_the_stage_trains_them(name, tmp_path):
    config = configs.load_file(f"configs/tokenizer/{name}.py")
    config.tokenizer.vocab_size = 600
    lines = [
        {"id": str(i), "text": f"word{i % 9} and text {i}\n", "source": "s"} for i in range(99)
    ]
    (tmp_path / "train-00000.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config.data.path = str(tmp_path)
    report = stage.run(config, str(tmp_path / "out"))
    opened = llm.tokenizers.load(tmp_path / "out")
    assert opened.hash == report["tokenizer_hash"]
    assert opened.decode(opened.encode("word1 and text")) == "word1 and text"
    assert report["all"]["round_trip"] == (name == "byte_bpe")


def test_wrong_training_input_is_refused():
    for train in (subwords.train_byte_bpe, subwords.train_wordpiece):
        with pytest.raises(ConfigError, match="vocab_size"):
            train(["text"], vocab_size=18)
        with pytest.raises(DataError, match="no text"):
            train(["", ""])
    assert subwords.train_byte_bpe(["a\ud800b"] * 3).decode([]) == ""

# SPDX-License-Identifier: Apache-2.0
"""Saving, opening again, and refusing what is not a tokenizer."""

import json

import pytest

import llm.tokenizers
from llm.errors import ConfigError, DataError
from llm.tokenizers import charlevel, sentencepiece

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "oh </s> yes"}]


@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "byte", "byte_bpe", "wordpiece"])
def test_saved_tokenizers_open_equal(trained, kind, tmp_path):
    tokenizer = trained[kind]
    tokenizer.save(tmp_path / "tokenizer")
    for place in (tmp_path / "tokenizer", tmp_path):  # the folder, or the workdir around it
        opened = llm.tokenizers.load(place)
        assert opened.hash == tokenizer.hash
        assert opened.special_tokens == tokenizer.special_tokens
        assert opened.stop_ids == tokenizer.stop_ids
        assert opened.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)


def test_hashes_tell_tokenizers_apart(trained):
    assert len({tokenizer.hash for tokenizer in trained.values()}) == len(trained)


def test_a_changed_file_is_refused(trained, tmp_path):
    trained["char"].save(tmp_path)
    (tmp_path / "characters.json").write_text(json.dumps("abc"))
    with pytest.raises(DataError, match=r"meta\.json"):
        llm.tokenizers.load(tmp_path)


def test_missing_and_damaged_files_are_refused(trained, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        llm.tokenizers.load(tmp_path / "none")
    with pytest.raises(DataError, match="holds no tokenizer"):
        llm.tokenizers.load(tmp_path)
    (tmp_path / "x.model").write_bytes(b"not a model")
    with pytest.raises(DataError, match="SentencePiece"):
        llm.tokenizers.load(tmp_path / "x.model")
    trained["bpe"].save(tmp_path / "t")
    (tmp_path / "t" / "tokenizer.model").unlink()
    with pytest.raises(DataError, match="incomplete"):
        llm.tokenizers.load(tmp_path / "t")


def test_a_bare_model_opens_with_its_own_tokens(trained, tmp_path):
    ours = trained["bpe"]
    (tmp_path / "tokenizer.model").write_bytes(ours.codec.files["tokenizer.model"])
    bare = llm.tokenizers.load(tmp_path / "tokenizer.model")
    text = "The help topics of Python, 1 2 3."
    assert bare.encode(text) == ours.encode(text)
    assert bare.decode(bare.encode(text)) == text
    assert (bare.bos_id, bare.eos_id, bare.pad_id) == (1, 2, 0)
    assert bare.special_tokens["<|user|>"] == ours.special_tokens["<|user|>"]
    with pytest.raises(DataError, match="no chat template"):
        bare.apply_chat_template(CHAT)


def test_wrong_training_input_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        sentencepiece.train(["text"], vocab_size=100)
    with pytest.raises(ConfigError, match="bpe, unigram"):
        sentencepiece.train(["text"], name="bpf")
    with pytest.raises(DataError, match="no text"):
        sentencepiece.train([], vocab_size=700)
    with pytest.raises(DataError, match="no text"):
        charlevel.train([])


def test_training_is_reproducible(trained, texts):
    for name in ("bpe", "unigram"):
        again = sentencepiece.train(texts, name=name, vocab_size=700)
        assert again.hash == trained[name].hash

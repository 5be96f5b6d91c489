# SPDX-License-Identifier: Apache-2.0
"""SeqIO tasks over documents and TFDS give the rows that are prepared on disk, byte for byte."""

import json
from collections import Counter

import numpy as np
import pytest

from llm import main
from llm.core import config as configs
from llm.data import prepare, rows
from llm.errors import ConfigError, DataError
from llm.tokenizers import sentencepiece, subwords
from tests import datasets

pytest.importorskip("seqio", reason="needs the data extra: pip install -e .[data]")
TEXTS = [f"Document {i} says é▁ {i * i}. " * (i % 6 + 1) for i in range(70)]
LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer():
    return sentencepiece.train(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def tasks():
    from llm.data import tasks

    return tasks


@pytest.fixture(scope="module")
def documents(tmp_path_factory, tokenizer, tasks):
    """A task over document shards, and their folder."""
    folder = tmp_path_factory.mktemp("documents")
    shards = []
    for name, part in (
        ("train-0", TEXTS[:30]),
        ("train-1", TEXTS[30:60]),
        ("validation-0", TEXTS[60:]),
    ):
        lines = [json.dumps({"id": f"{name}:{i}", "text": text}) for i, text in enumerate(part)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        shards.append({"file": f"{name}.jsonl", "split": name.split("-")[0]})
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return tasks.document_task("documents", folder, tokenizer), folder


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory, tasks):
    """A TFDS dataset that is written here."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict({"body": tfds.features.Text()})
    datasets.write(
        folder, "tiny_text", features, {"train": [{"body": text} for text in ["", *TEXTS]]}
    )
    return folder


@pytest.fixture(scope="module")
def tfds_task(tfds_folder, tokenizer, tasks):
    return tasks.tfds_task(
        "tiny",
        "tiny_text:1.0.0",
        tokenizer,
        data_dir=str(tfds_folder),
        splits={"train": "train[:61]", "validation": "train[61:]"},
        text_field="body",
    )


def assert_same(folder, blocks):
    data = rows.open_rows(folder)
    stored = data.take(np.arange(len(data)))
    blocks = list(blocks)
    for name, values in stored.items():
        live = np.concatenate([block[name] for block in blocks])
        assert live.dtype == values.dtype and live.tobytes() == values.tobytes(), name


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_from_documents_are_byte_identical(documents, tasks, tokenizer, split, tmp_path):
    task, folder = documents
    prepare.prepare_documents(folder, tokenizer, LENGTH, tmp_path / "r", split=split)
    assert_same(tmp_path / "r", tasks.stream_rows(task, split, tokenizer, LENGTH))
    assert_same(tmp_path / "r", tasks.stream_rows(task, split, tokenizer, LENGTH, buffer=1))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_rows_from_tfds_are_byte_identical(tfds_task, tasks, tokenizer, split, tmp_path):
    texts = {"train": TEXTS[:60], "validation": TEXTS[60:]}[split]
    prepare.prepare_documents([{"text": t} for t in texts], tokenizer, LENGTH, tmp_path / "a")
    assert_same(tmp_path / "a", tasks.stream_rows(tfds_task, split, tokenizer, LENGTH))
    raw = tasks.source_documents(tfds_task, split, "body")
    manifest = prepare.prepare_documents(raw, tokenizer, LENGTH, tmp_path / "b", source_hash="t")
    assert manifest["bytes_of_text"] == sum(len(text.encode()) for text in texts)
    assert_same(tmp_path / "b", tasks.stream_rows(tfds_task, split, tokenizer, LENGTH))


def test_rows_of_a_config_with_a_tfds_source(tfds_folder, tfds_task, tasks, tokenizer, tmp_path):
    section = {
        "path": "tiny_text:1.0.0",
        "data_dir": str(tfds_folder),
        "train": "train[:61]",
        "validation": "train[61:]",
        "text_field": "body",
        "length": LENGTH,
    }
    builder = configs.resolve_builder(main.DATA["tfds"])
    made = builder(tokenizer, str(tmp_path), **section)
    for split in ("train", "validation"):
        assert_same(tmp_path / split, tasks.stream_rows(tfds_task, split, tokenizer, LENGTH))
    again = builder(tokenizer, str(tmp_path), **section)
    assert again["train"].fingerprint == made["train"].fingerprint


def test_mixture_draws_by_rate(documents, tfds_task, tasks, tokenizer):
    task, _ = documents
    mixed = tasks.mixture("both", {task: 3.0, tfds_task: 1.0})
    assert {item.name: mixed.get_rate(item) for item in mixed.tasks} == {"documents": 3, "tiny": 1}
    dataset = mixed.get_dataset(None, "train", shuffle=False, seed=0, num_epochs=None)
    marked = dataset.take(400).as_numpy_iterator()
    # Both tasks hold the same texts; how far each got tells how often it was drawn.
    counts = Counter(tokenizer.decode(item["targets"]) for item in marked)
    assert sum(counts.values()) == 400 and set(counts) == set(TEXTS[:60])
    with pytest.raises(ConfigError, match="rates"):
        tasks.mixture("none", {task: 0})


def test_streams_repeat_themselves_and_split_among_hosts(documents, tfds_task, tasks, tokenizer):
    mixed = tasks.mixture("both", {documents[0]: 1.0, tfds_task: 1.0})

    def make(**more):
        return tasks.Stream(mixed, "train", tokenizer, LENGTH, seed=1, batch_size=4, **more)

    whole = make()
    batches = [whole.batch(step) for step in range(3)]
    assert batches[0]["tokens"].shape == (4, LENGTH)
    assert not np.array_equal(batches[0]["tokens"], batches[1]["tokens"])
    resumed = make(host_count=2, host_index=1).batch(2)
    back = whole.batch(1)
    for name in batches[0]:
        np.testing.assert_array_equal(resumed[name], batches[2][name][2:])
        np.testing.assert_array_equal(back[name], batches[1][name])
    assert whole.state() == {}
    with pytest.raises(ConfigError, match="3 hosts"):
        make(host_count=3)


def test_missing_splits_are_named(documents, tasks, tokenizer):
    with pytest.raises(DataError, match="no split 'test'"):
        tasks.stream_rows(documents[0], "test", tokenizer, LENGTH)


def test_vocabulary_adapter(tokenizer, tasks):
    import tensorflow as tf

    from llm.data.vocabulary import TokenizerVocabulary

    vocabulary = TokenizerVocabulary(tokenizer)
    text = "Document é▁\n <|user|>"
    ids = tokenizer.encode(text)
    assert vocabulary.encode(text) == ids and vocabulary.decode(ids) == text
    assert vocabulary.decode([*ids, vocabulary.eos_id, 99]) == text
    assert vocabulary.vocab_size == tokenizer.vocab_size
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (
        0,
        1,
        2,
        3,
    )
    in_graph = tf.function(vocabulary.encode_tf)
    for encode in (vocabulary.encode_tf, in_graph):
        assert encode(tf.constant(text)).numpy().tolist() == ids
    assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == text
    batch = vocabulary.decode_tf(tf.constant([ids, ids])).numpy()
    assert [item.decode() for item in batch] == [text, text]
    assert vocabulary == TokenizerVocabulary(tokenizer)


@pytest.mark.parametrize("train", [subwords.train_byte_bpe, subwords.train_wordpiece])
def test_vocabulary_adapter_of_other_kinds(train, tasks):
    import tensorflow as tf

    from llm.data.vocabulary import TokenizerVocabulary

    tokenizer = train(TEXTS, vocab_size=330)
    vocabulary = TokenizerVocabulary(tokenizer)
    text = "document 3 says 9."
    ids = vocabulary.encode(text)
    assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids == tokenizer.encode(text)
    assert vocabulary.decode(ids) == vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == text
    assert vocabulary.vocab_size == tokenizer.vocab_size and vocabulary.unk_id == 3
    assert vocabulary != TokenizerVocabulary(train(TEXTS[:9], vocab_size=330))


def test_tensorflow_takes_no_accelerator(tasks):
    import tensorflow as tf

    assert not tf.config.get_visible_devices("GPU") and not tf.config.get_visible_devices("TPU")


def test_a_task_gives_rows_with_the_noise_of_pretraining(tasks, documents, tokenizer):
    """SeqIO's examples are the rows that training reads, for an encoder and an encoder-decoder."""
    from llm.pretrain import denoise, prefix

    for make in (denoise.mlm, prefix.ul2):
        transform = make(tokenizer, length=LENGTH, seed=3)
        task = tasks.rows_task(documents[0], tokenizer, LENGTH, transform)
        got = list(task.get_dataset(split="train", shuffle=False).as_numpy_iterator())
        (block,) = tasks.stream_rows(documents[0], "train", tokenizer, LENGTH)
        want = transform(block, np.arange(len(block["tokens"])))
        assert len(got) == len(block["tokens"]) and set(got[0]) == set(want)
        for name, values in want.items():
            np.testing.assert_array_equal(np.stack([row[name] for row in got]), values, name)

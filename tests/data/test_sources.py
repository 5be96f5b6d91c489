# SPDX-License-Identifier: Apache-2.0
"""Records from files, TensorFlow datasets and SeqIO tasks are the same records."""

import json
import sys

import numpy as np
import pytest

from llm import main
from llm.core import config as configs
from llm.data import sources
from llm.errors import ConfigError, DataError
from llm.posttrain import formats
from llm.tokenizers import loading as tokenizers
from tests import datasets

pytest.importorskip("seqio", reason="needs the data extra: pip install -e .[data]")

BYTE = tokenizers.load("byte")
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} é?"},
            {"role": "assistant", "content": "x" * (n % 5 + 1)},
        ],
        "number": n,
        "tags": ["a"] * (n % 3),
        "turns": [["one", "two"][: n % 2 + 1], []],
    }
    for n in range(40)
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {
            "messages": tfds.features.Sequence({"role": text, "content": text}),
            "number": tfds.features.Scalar(np.int64),
            "tags": tfds.features.Sequence(text),
            "turns": tfds.features.Sequence(tfds.features.Sequence(text)),
        }
    )
    splits = {"train": CHATS, "test": CHATS[:7]}
    return datasets.write(tmp_path_factory.mktemp("tfds"), "chats", features, splits)


TASKS = """
import seqio

vocabulary = seqio.ByteVocabulary()
feature = seqio.Feature(vocabulary, add_eos=False)


def read(split, shuffle_files, seed=None):
    import tensorflow as tf

    pairs = [(f"What is {n} é?", "x" * (n % 5 + 1)) for n in range(40 if split == "train" else 7)]
    columns = dict(zip(("inputs", "targets"), map(list, zip(*pairs))))
    return tf.data.Dataset.from_tensor_slices(columns)


for name, kept in (("kept", True), ("tokens", False)):
    seqio.TaskRegistry.add(
        f"records_{name}",
        source=seqio.FunctionDataSource(read, splits=("train", "test")),
        preprocessors=[
            lambda data, output_features, kept=kept: seqio.preprocessors.tokenize(
                data, output_features, copy_pretokenized=kept
            )
        ],
        output_features={"inputs": feature, "targets": feature},
    )
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "records_of_tests.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "records_of_tests"
    sys.modules.pop("records_of_tests", None)
    import seqio

    for name in ("records_kept", "records_tokens"):
        seqio.TaskRegistry.remove(name)


def test_a_dataset_gives_what_was_put_in(prepared):
    assert list(sources.read(f"tfds:{prepared}")) == CHATS
    assert list(sources.read(f"tfds:{prepared}@test")) == CHATS[:7]
    assert list(sources.read(f"tfds:{prepared}@train[3:5]")) == CHATS[3:5]


@pytest.mark.parametrize("task", ["records_kept", "records_tokens"])
def test_a_task_gives_its_texts(module, task):
    found = list(sources.read(f"seqio:{module}:{task}@test"))
    assert found[3] == {"inputs": "What is 3 é?", "targets": "xxxx"} and len(found) == 7
    chats = list(formats.convert(found))
    assert chats == [{"messages": chat["messages"]} for chat in CHATS[:7]]


def test_rows_are_the_same_whatever_holds_the_chats(prepared, module, tmp_path):
    builder = configs.resolve_builder(main.DATA["chats"])

    def rows(path, name):
        folder = str(tmp_path / name)
        made = builder(BYTE, folder, path=str(path), length=64, validation=0.3)
        taken = {split: data.take(np.arange(len(data))) for split, data in made.items()}
        return {(s, k): v.tobytes() for s, arrays in taken.items() for k, v in arrays.items()}

    whole, bare = tmp_path / "whole.jsonl", tmp_path / "bare.jsonl"
    whole.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    messages = [{"messages": chat["messages"]} for chat in CHATS]
    bare.write_text("".join(json.dumps(chat) + "\n" for chat in messages))
    assert rows(f"tfds:{prepared}", "tfds") == rows(whole, "whole")
    assert rows(f"seqio:{module}:records_kept", "seqio") == rows(bare, "bare")


@pytest.mark.parametrize(
    ("source", "error", "named"),
    [
        ("none.jsonl", DataError, "none.jsonl does not exist"),
        ("tfds:none_such", DataError, "none_such"),
        ("tfds:{prepared}@dev", DataError, "dev"),
        ("tfds:{prepared}@train[0:0]", DataError, "no data"),
        ("seqio:no_module_such:task", ConfigError, "no_module_such"),
        ("seqio:{module}:records_none", ConfigError, "records_none"),
        ("seqio:{module}:records_kept@dev", DataError, "It has: train, test"),
    ],
)
def test_what_is_missing_is_named(prepared, module, source, error, named):
    with pytest.raises(error) as caught:
        list(sources.read(source.format(prepared=prepared, module=module)))
    assert named in str(caught.value)


def test_fingerprints(prepared, tmp_path):
    place = tmp_path / "a.jsonl"
    place.write_text("{}")
    found = {sources.fingerprint(s) for s in (place, "tfds:a@train", "tfds:a@test", "seqio:a:b")}
    assert len(found) == 4

# SPDX-License-Identifier: Apache-2.0
"""SeqIO tasks and mixtures over documents and TFDS, and rows made from them. Imports TensorFlow.

A task yields {"targets": ids} of one document each, without start or end: SeqIO holds the sources,
preprocessors, vocabulary and mixture. Rows are cut from it by the same NumPy code that prepares
rows on disk, so both are byte-identical. Tasks are plain objects: nothing is registered.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from llm import files
from llm.data import examples, packing
from llm.data.rows import Batch
from llm.data.sources import leave_accelerators_to_jax
from llm.data.vocabulary import TokenizerVocabulary
from llm.errors import ConfigError, DataError
from llm.text import records
from llm.tokenizers.base import Tokenizer

FEATURE = "targets"
_BATCH = 256  # texts tokenised together

leave_accelerators_to_jax()


def document_task(
    name: str,
    path: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    splits: Sequence[str] = ("train", "validation"),
    preprocessors: Sequence[Any] = (),
) -> seqio.Task:
    """Return a task over documents that `llm.text.records` reads.

    Args:
        name: letters, digits and underscores.
        path: a file, glob or folder of documents.
        tokenizer: gives the ids.
        splits: splits of the documents.
        preprocessors: functions dataset -> dataset of {"text"}, before tokenisation.
    """

    def read(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        signature = {"text": tf.TensorSpec([], tf.string)}
        return tf.data.Dataset.from_generator(
            lambda: (
                {"text": document["text"].encode("utf-8", "replace")}
                for document in records.read_documents(path, split)
            ),
            output_signature=signature,
        )

    source = seqio.FunctionDataSource(read, splits=splits)
    return _task(name, source, tokenizer, "text", preprocessors)


def tfds_task(
    name: str,
    dataset: str,
    tokenizer: Tokenizer,
    *,
    data_dir: str | None = None,
    splits: Mapping[str, str] | None = None,
    text_field: str = "text",
    preprocessors: Sequence[Any] = (),
) -> seqio.Task:
    """Return a task over a TensorFlow Datasets source, such as "c4/en:3.1.0".

    Args:
        name: letters, digits and underscores.
        dataset: name, configuration and version of the dataset.
        tokenizer: gives the ids.
        data_dir: folder that holds the prepared dataset.
        splits: our name -> slice, e.g. {"validation": "train[:1%]"}; None takes the dataset's own.
        text_field: feature that holds the text.
        preprocessors: functions dataset -> dataset, before tokenisation.
    """
    source = seqio.TfdsDataSource(dataset, data_dir, splits=dict(splits) if splits else None)
    return _task(name, source, tokenizer, text_field, preprocessors)


def mixture(name: str, tasks: Mapping[Any, float]) -> seqio.Mixture:
    """Return a mixture of task objects (or mixtures), drawn in proportion to their rates.

    Raises:
        ConfigError: there is no task, or a rate is not above 0.
    """
    if not tasks or any(rate <= 0 for rate in tasks.values()):
        raise ConfigError(f"The mixture {name!r} needs tasks with rates above 0.", "Check them.")
    return seqio.Mixture(name, list(tasks.items()))


def stream_rows(
    provider: seqio.Task | seqio.Mixture,
    split: str,
    tokenizer: Tokenizer,
    length: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    epochs: int | None = 1,
    buffer: int = packing.FILL_BUFFER,
) -> Iterator[packing.Row]:
    """Yield packed rows, in blocks [n, length], straight from a task or mixture.

    Without `shuffle` and with one epoch a task gives byte for byte the rows that
    `llm.data.prepare.prepare_documents` writes.

    Args:
        epochs: passes over the data; None goes on without end.
        buffer: tokens to gather before rows are cut: fewer give the first row sooner.

    Raises:
        DataError: the split does not exist.
    """
    if split not in provider.splits:
        raise DataError(
            f"{provider.name} has no split {split!r}.", f"It has {', '.join(provider.splits)}."
        )
    dataset = provider.get_dataset(
        sequence_length=None,
        split=split,
        shuffle=shuffle,
        seed=seed,
        num_epochs=epochs,
        trim_output_features=False,
    )
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    found = (
        examples.document_example(item[FEATURE], start, tokenizer.eos_id)
        for item in dataset.as_numpy_iterator()
    )
    return packing.pack_blocks(found, length, buffer=buffer)


def rows_task(
    task: seqio.Task, tokenizer: Tokenizer, length: int, transform: Any = None
) -> seqio.Task:
    """Return a task whose examples are packed rows, after a transform such as those of pretraining.

    Example i is row i of `stream_rows(task, …)` with the noise of number i, so a SeqIO pipeline
    trains on what `config.data.corruption` gives.

    Args:
        task: gives {"targets": ids} of documents, see `document_task`.
        tokenizer: the task's own.
        length: tokens per row that the transform reads.
        transform: (rows [B, T], numbers [B]) -> rows, for example `denoise.mlm(tokenizer, …)`.
    """
    change = transform or (lambda rows, numbers: rows)
    blank = {name: np.zeros((1, length), kind) for name, kind in packing.DTYPES.items()}
    blank["segments"][:] = 1
    fields = {name: values[0] for name, values in change(blank, np.zeros(1, np.int64)).items()}
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    def pack(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def rows() -> Iterator[packing.Row]:
            found = (
                examples.document_example(item[FEATURE], start, tokenizer.eos_id)
                for item in dataset.as_numpy_iterator()
            )
            for number, row in enumerate(packing.pack(found, length)):
                block = change({name: x[None] for name, x in row.items()}, np.array([number]))
                yield {name: values[0] for name, values in block.items()}

        signature = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in fields.items()}
        return tf.data.Dataset.from_generator(rows, output_signature=signature)

    vocabulary = seqio.PassThroughVocabulary(tokenizer.vocab_size)
    features = {
        name: seqio.Feature(vocabulary, add_eos=False, dtype=tf.as_dtype(x.dtype))
        for name, x in fields.items()
    }
    return seqio.Task(
        f"{task.name}_rows",
        source=task.source,
        output_features=features,
        preprocessors=[*task.preprocessors, pack],
    )


def source_documents(
    task: seqio.Task, split: str, text_field: str = "text"
) -> Iterator[dict[str, Any]]:
    """Yield a task's raw texts as documents, for `llm.data.prepare.prepare_documents`."""
    dataset = task.source.get_dataset(split=split, shuffle=False)
    for number, item in enumerate(dataset.as_numpy_iterator()):
        text = item[text_field].decode("utf-8", "replace")
        yield {"id": f"{task.name}:{number}", "text": text, "source": task.name, "meta": {}}


class Stream:
    """Batches packed while training, without rows on disk: the alternative to `llm.data.feed`.

    Every host reads the whole stream and keeps its slice, so the order does not depend on how many
    there are. A step that is not the next one is reached by reading up to it again.

    Args:
        provider: a task or mixture.
        split: which split to read, shuffled by `seed`, without end.
        tokenizer, length: of the rows.
        batch_size: global, in rows.
        host_index, host_count: which slice of each batch this host keeps.

    Raises:
        ConfigError: the batch cannot be divided among the hosts.
    """

    def __init__(
        self,
        provider: seqio.Task | seqio.Mixture,
        split: str,
        tokenizer: Tokenizer,
        length: int,
        *,
        seed: int,
        batch_size: int,
        host_index: int = 0,
        host_count: int = 1,
    ):
        if batch_size < 1 or batch_size % host_count:
            raise ConfigError(
                f"A global batch of {batch_size} rows cannot be divided among {host_count} hosts.",
                "Choose train.batch_size as a multiple of the number of hosts.",
            )
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self.fingerprint = files.hash_json([provider.name, split, tokenizer.hash, length])
        self._open = functools.partial(
            stream_rows,
            provider,
            split,
            tokenizer,
            length,
            shuffle=True,
            seed=seed,
            epochs=None,
            buffer=length * batch_size,
        )
        share = batch_size // host_count
        self._slice = slice(host_index * share, (host_index + 1) * share)
        self._next = 0
        self._rows: Iterator[packing.Row] = iter(())

    def batch(self, step: int, params: Any = None) -> Batch:
        """Return this host's slice of a step's batch.

        Raises:
            DataError: the stream ended.
        """
        if step < self._next or not step:
            self._rows = (
                {name: values[index] for name, values in block.items()}
                for block in self._open()
                for index in range(len(block["tokens"]))
            )
            self._next = 0
        elif not self._next:
            return self._replay(step)
        while True:
            taken = list(itertools.islice(self._rows, self.batch_size))
            if len(taken) < self.batch_size:
                raise DataError(f"The stream ended at step {self._next}.", "Check its source.")
            self._next += 1
            if self._next > step:
                mine = taken[self._slice]
                return {name: np.stack([row[name] for row in mine]) for name in mine[0]}

    def _replay(self, step: int) -> Batch:
        self.batch(0)
        return self.batch(step)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the step: nothing."""
        return {}


def _task(
    name: str,
    source: seqio.DataSource,
    tokenizer: Tokenizer,
    text_field: str,
    preprocessors: Sequence[Any],
) -> seqio.Task:
    vocabulary = TokenizerVocabulary(tokenizer)

    def tokenize(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return _tokenize(dataset, tokenizer, text_field)

    return seqio.Task(
        name,
        source=source,
        output_features={FEATURE: seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)},
        preprocessors=[*preprocessors, tokenize],
    )


def _tokenize(dataset: tf.data.Dataset, tokenizer: Tokenizer, text_field: str) -> tf.data.Dataset:
    """Turn texts into ids, many at a time; empty texts are dropped, as prepared rows do."""

    def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = tokenizer.encode_batch([text.decode("utf-8", "replace") for text in texts])
        sizes = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(sizes.sum()))
        return flat, sizes

    def split(texts: tf.Tensor) -> tf.data.Dataset:
        flat, sizes = tf.numpy_function(encode, [texts], (tf.int32, tf.int64), stateful=False)
        flat.set_shape([None])
        sizes.set_shape([None])
        return tf.RaggedTensor.from_row_lengths(flat, sizes, validate=False)

    texts = dataset.map(lambda item: item[text_field])
    texts = texts.filter(lambda text: tf.strings.length(text) > 0)
    ragged = texts.batch(_BATCH).map(split).unbatch()
    return ragged.map(lambda ids: {FEATURE: ids})

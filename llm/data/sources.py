# SPDX-License-Identifier: Apache-2.0
"""Records (chats, pairs, questions) of a JSONL file, a TensorFlow dataset or a SeqIO task.

    answers.jsonl.gz               a file, one object a line
    tfds:gsm8k/main@train          a prepared dataset and its split ("train" where none is given)
    tfds:/data/gsm8k/main/1.0.0    the same by its folder
    seqio:flan.tasks:flan_small    a task or mixture, and the module that registers it

TensorFlow loads only where the last three are read.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from llm import files
from llm.errors import ConfigError, DataError
from llm.text.lines import read_lines

Record = dict[str, Any]

_KEPT = "_pretokenized"  # what SeqIO's tokenisation calls the text it began with


def read(source: Any) -> Iterator[Record]:
    """Yield the records of a source.

    Fields of a dataset are turned to texts, numbers and lists. Of a SeqIO task come the texts that
    were tokenised, or the features decoded, and any other text of an example.

    Raises:
        ConfigError: a library is missing, or a module or task is unknown.
        DataError: the source is missing or empty, or a line is not an object.
    """
    kind, _, name = str(source).partition(":")
    reader = {"tfds": _read_tfds, "seqio": _read_seqio}.get(kind)
    if reader is None:
        yield from _read_jsonl(source)
        return
    name, _, split = name.partition("@")
    found = False
    for record in reader(name, split or "train"):
        found = True
        yield record
    if not found:
        raise DataError(f"{source} is empty.", "Name another split, as in tfds:NAME@SPLIT.")


def fingerprint(source: Any) -> str:
    """Return a hash of a source: of a file's bytes, or of the name that a dataset is given.

    Raises:
        DataError: the file is missing.
    """
    if str(source).partition(":")[0] in ("tfds", "seqio"):
        return files.hash_json(str(source))
    return files.hash_file(_file(source))


def _file(source: Any) -> Any:
    place = files.path(source)
    if not place.is_file():
        raise DataError(
            f"{place} does not exist.",
            "Give a JSONL file, one object per line, or tfds:NAME@SPLIT.",
        )
    return place


def _read_jsonl(source: Any) -> Iterator[Record]:
    place, number = _file(source), 0
    for number, content, problem in read_lines(place):
        if problem:
            raise DataError(f"{place} is damaged, line {number}: {problem}.", "Copy it again.")
        if not content.strip():
            continue
        try:
            record = files.parse_json(content.decode("utf-8"))
        except ValueError as error:
            raise DataError(
                f"{place}, line {number} is no JSON: {error}.", "Correct or remove the line."
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"{place}, line {number} is not a JSON object.", "Correct or remove the line."
            )
        yield record
    if not number:
        raise DataError(f"{place} is empty.", "Give at least one record.")


def _read_tfds(name: str, split: str) -> Iterator[Record]:
    builder = open_tfds(name)
    try:
        data = builder.as_dataset(split=split, shuffle_files=False)
    except (LookupError, ValueError, OSError, AssertionError) as error:
        raise DataError(
            f"The dataset {name}, split {split}, cannot be read ({_first_line(error)}).",
            f"It has: {', '.join(builder.info.splits) or 'none; prepare it with tfds build'}.",
        ) from error
    for example in data.as_numpy_iterator():
        yield _plain(example, builder.info.features)


def open_tfds(name: str, data_dir: str = "") -> Any:
    """Return the builder of a prepared dataset, by its name or its folder.

    Args:
        name: with its configuration and version if wanted, or a path or address.
        data_dir: where datasets are prepared; "" for TFDS_DATA_DIR or the library's own place.

    Raises:
        ConfigError: tensorflow-datasets is missing.
        DataError: there is no such dataset.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise _missing("tensorflow-datasets") from error
    leave_accelerators_to_jax()
    try:
        if name.startswith("/") or "://" in name:
            return tfds.builder_from_directory(name)
        return tfds.builder(name, data_dir=data_dir or None)
    except (LookupError, ValueError, OSError) as error:
        raise DataError(
            f"The dataset {name} cannot be opened ({_first_line(error)}).",
            "Check its name and folder (TFDS_DATA_DIR says where it is looked for), and prepare "
            "it with tfds build.",
        ) from error


def _plain(value: Any, feature: Any) -> Any:
    """Turn a value of a dataset into what JSON would hold; lists of objects come as columns."""
    inner = getattr(feature, "feature", None)  # of a Sequence
    value = value.to_list() if hasattr(value, "to_list") else value  # of rows of many lengths
    if inner is not None and isinstance(value, Mapping):
        columns = {key: _plain_list(column, inner[key]) for key, column in value.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(value, Mapping):
        return {key: _plain(one, feature[key]) for key, one in value.items()}
    if inner is not None:
        return _plain_list(value, inner)
    if isinstance(value, bytes):
        return _text(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _plain_list(values: Any, feature: Any) -> list[Any]:
    return [_plain(value, feature) for value in values]


def _read_seqio(name: str, split: str) -> Iterator[Record]:
    try:
        import seqio
    except ImportError as error:
        raise _missing("seqio") from error
    leave_accelerators_to_jax()
    module, _, task = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        provider = seqio.get_mixture_or_task(task)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"There is no SeqIO task {task} in {module or 'seqio'} ({_first_line(error)}).",
            "Name the module that registers it: seqio:MODULE:TASK@SPLIT.",
        ) from error
    if split not in provider.splits:
        raise DataError(f"{task} has no split {split}.", f"It has: {', '.join(provider.splits)}.")
    data = provider.get_dataset(
        None, split, shuffle=False, num_epochs=1, trim_output_features=False
    )
    for example in data.as_numpy_iterator():
        yield _texts(example, provider.output_features)


def _texts(example: Mapping[str, Any], features: Mapping[str, Any]) -> Record:
    made = {}
    for key, value in example.items():
        if isinstance(value, bytes):
            made[key.removesuffix(_KEPT)] = _text(value)
        elif key in features and key + _KEPT not in example:
            made[key] = features[key].vocabulary.decode(value.tolist())
    return made


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _missing(library: str) -> ConfigError:
    return ConfigError(f"These records need {library}.", 'Run: pip install "jax-llm[data]"')


def leave_accelerators_to_jax() -> None:
    """Let TensorFlow, which only reads here, take no accelerator's memory."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)

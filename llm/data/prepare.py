# SPDX-License-Identifier: Apache-2.0
"""From documents, chats and preferences to packed rows on disk.

Every function writes a folder of rows (`llm.data.rows`) and returns its manifest. A folder that was
made from the same input with the same settings is used again.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from llm import files
from llm.data import examples, packing, rows, sources
from llm.errors import ConfigError, DataError, unknown
from llm.text import records
from llm.tokenizers.base import Tokenizer

TOO_LONG = ("drop", "truncate")
VERSION = 2  # raise when the same input would give other rows


def prepare_documents(
    source: Any,
    tokenizer: Tokenizer,
    length: int,
    out_dir: Any,
    *,
    split: str | None = None,
    source_hash: str = "",
) -> dict[str, Any]:
    """Tokenise documents and pack them, cutting them where a row ends.

    A document is [start] text [end]: every token of the text is a target once, and so is the end.

    Args:
        source: a path that `llm.text.records` reads, or document dicts with "text".
        tokenizer: gives the ids.
        length: tokens per row.
        out_dir: folder of the rows.
        split: of a documents folder, "train" or "validation".
        source_hash: identifies records given as an iterator, so that rows can be used again.

    Raises:
        DataError: there is no text.
    """
    options = {"split": split}
    key, items = _source("documents", source, source_hash, tokenizer, length, options, split)
    counter: Counter[str] = Counter()

    def blocks() -> Iterator[packing.Row]:
        found = examples.document_examples(items(), tokenizer, counter)
        return packing.pack_blocks(found, length)

    return _store("documents", out_dir, blocks, tokenizer, key, counter)


def prepare_chats(
    source: Any,
    tokenizer: Tokenizer,
    length: int,
    out_dir: Any,
    *,
    too_long: str = "drop",
    assistant_only: bool = True,
    source_hash: str = "",
) -> dict[str, Any]:
    """Tokenise chats and pack them whole.

    Args:
        source: a JSONL path, or dicts with "messages".
        too_long: "drop" or "truncate" chats of more tokens than a row.
        assistant_only: weigh only what the assistant says; False weighs every token.

    Raises:
        ConfigError: an option is unknown.
        DataError: a record is malformed, or no chat is left.
    """
    _check_choice("too_long", too_long, TOO_LONG)
    options = {
        "too_long": too_long,
        "assistant_only": assistant_only,
        "template": tokenizer.chat_template,
    }
    key, items = _source("chats", source, source_hash, tokenizer, length, options, None)
    counter: Counter[str] = Counter()

    def blocks() -> Iterator[packing.Row]:
        found = (
            examples.chat_example(record, tokenizer, assistant_only, f"chat {number}")
            for number, record in enumerate(items())
        )
        fitting = _counted(_fitting(found, length, too_long, counter), tokenizer, counter)
        return packing.pack_blocks(fitting, length, split_long=False)

    return _store("chats", out_dir, blocks, tokenizer, key, counter)


def prepare_preferences(
    source: Any,
    tokenizer: Tokenizer,
    length: int,
    out_dir: Any,
    *,
    too_long: str = "drop",
    source_hash: str = "",
) -> dict[str, Any]:
    """Tokenise preference pairs, one pair per row.

    Args:
        source: a JSONL path, or dicts with "prompt", "chosen" and "rejected", each a string or a
            list of messages; without "prompt", chosen and rejected are whole chats. A number
            "margin" says how much better the chosen one is; "ranking", a list of answers, best
            first, stands for all its pairs.
        too_long: "drop" or "truncate" pairs of which one side has more tokens than a row.

    Raises:
        ConfigError: an option is unknown.
        DataError: a record is malformed, or no pair is left.
    """
    _check_choice("too_long", too_long, TOO_LONG)
    options = {"too_long": too_long, "template": tokenizer.chat_template}
    key, items = _source("preferences", source, source_hash, tokenizer, length, options, None)
    counter: Counter[str] = Counter()

    def blocks() -> Iterator[packing.Row]:
        for number, record in enumerate(items()):
            name = f"preference {number}"
            for one in examples.pairs_of(record, name):
                pair = examples.preference_examples(one, tokenizer, name)
                kept = list(_fitting(pair, length, too_long, counter))
                if len(kept) < 2:
                    counter["pairs_dropped"] += 1
                    continue
                counter["examples"] += 1
                row = alone(kept, ("chosen_", "rejected_"), length)
                margin = examples.number_of(one, "margin", name)
                yield row | {"margins": np.asarray(margin, np.float32)}

    return _store("preferences", out_dir, blocks, tokenizer, key, counter)


def prepare_answers(
    source: Any,
    tokenizer: Tokenizer,
    length: int,
    out_dir: Any,
    *,
    too_long: str = "drop",
    source_hash: str = "",
) -> dict[str, Any]:
    """Tokenise single answers with a label, one per row, each beside another answer to its prompt.

    The other one ("kl_" fields) is the neighbour's: what the log-probabilities of such mismatched
    answers moved by is KTO's point of reference.

    Args:
        source: a JSONL path, or dicts: see `examples.single_answers`.
        too_long: "drop" or "truncate" answers of more tokens than a row, with either answer.

    Raises:
        ConfigError: an option is unknown.
        DataError: a record is malformed, or no answer is left.
    """
    _check_choice("too_long", too_long, TOO_LONG)
    options = {"too_long": too_long, "template": tokenizer.chat_template}
    key, items = _source("answers", source, source_hash, tokenizer, length, options, None)
    counter: Counter[str] = Counter()

    def blocks() -> Iterator[packing.Row]:
        answers = examples.single_answers(items())
        for index, (prompt, chat, label) in enumerate(answers):
            before, other, _ = answers[index - 1]
            chats = (chat, [*prompt, *other[len(before) :]])
            both = (examples.answer_example(prompt, each, tokenizer) for each in chats)
            kept = list(_fitting(both, length, too_long, counter))
            if len(kept) < 2:
                continue
            counter["examples"] += 1
            yield alone(kept, ("", "kl_"), length) | {"labels": np.asarray(label, np.int32)}

    return _store("answers", out_dir, blocks, tokenizer, key, counter)


def alone(found: Sequence[packing.Row], prefixes: Sequence[str], length: int) -> packing.Row:
    """Return one row that holds each example by itself, its fields named by its prefix."""
    row: packing.Row = {}
    for prefix, example in zip(prefixes, found, strict=True):
        (packed,) = packing.pack([example], length, split_long=False)
        row |= {f"{prefix}{name}": values for name, values in packed.items()}
    return row


def prepare_text(
    texts: Any,
    tokenizer: Tokenizer,
    length: int,
    out_dir: Any,
    *,
    validation: float = 0.1,
) -> dict[str, dict[str, Any]]:
    """Cut plain text files into contiguous blocks: the first part trains, the last validates.

    Args:
        texts: one path of a UTF-8 text, or several.
        validation: share of each text, in characters, kept for validation; 0 for none.

    Returns:
        Manifest of every split; the rows are in `out_dir/<split>`.

    Raises:
        ConfigError: the share is not below 1.
        DataError: a file is missing or empty.
    """
    if not 0 <= validation < 1:
        raise ConfigError(f"data.validation is {validation}.", "Use a share from 0 to below 1.")
    paths = [texts] if isinstance(texts, str | os.PathLike) else list(texts)
    found = [_read_text(place) for place in paths]
    cuts = [round(len(text) * (1 - validation)) for text in found]
    parts = {"train": [text[:cut] for text, cut in zip(found, cuts, strict=True)]}
    if validation:
        parts["validation"] = [text[cut:] for text, cut in zip(found, cuts, strict=True)]
    manifests = {}
    for split, pieces in parts.items():
        key = _hash("text", files.hash_json(pieces), tokenizer, length, {"split": split})
        counter: Counter[str] = Counter()

        def blocks(pieces: list[str] = pieces, counter: Counter = counter) -> Iterator[packing.Row]:
            return packing.pack_blocks(examples.text_examples(pieces, tokenizer, counter), length)

        place = files.path(out_dir) / split
        manifests[split] = _store("text", place, blocks, tokenizer, key, counter)
    return manifests


PREPARE: dict[str, Callable[..., dict[str, Any]]] = {
    "documents": prepare_documents,
    "chats": prepare_chats,
    "preferences": prepare_preferences,
    "answers": prepare_answers,
}


def check_tokenizer(manifest: dict[str, Any], tokenizer: Tokenizer, place: Any) -> None:
    """Refuse rows that another tokenizer made.

    Raises:
        DataError: the hashes differ.
    """
    if manifest.get("tokenizer_hash") != tokenizer.hash:
        raise DataError(
            f"The rows in {place} were made with another tokenizer than {tokenizer!r}.",
            "Prepare the data again, or point at the tokenizer the rows were made with.",
        )


def _source(
    kind: str,
    source: Any,
    source_hash: str,
    tokenizer: Tokenizer,
    length: int,
    options: dict[str, Any],
    split: str | None,
) -> tuple[str, Callable[[], Iterable[dict[str, Any]]]]:
    """Return the config hash ("" where the input cannot be identified) and a reader."""
    reader: Callable[[], Iterable[dict[str, Any]]]
    if isinstance(source, str | os.PathLike):
        if kind == "documents":
            source_hash = source_hash or _hash_shards(records.find_shards(source, split))
            reader = functools.partial(records.read_documents, source, split)
        else:
            source_hash = source_hash or sources.fingerprint(source)
            reader = functools.partial(sources.read, source)
    else:
        if not source_hash and isinstance(source, list | tuple):
            source_hash = files.hash_json(source)
        reader = functools.partial(iter, source)
    key = _hash(kind, source_hash, tokenizer, length, options) if source_hash else ""
    return key, reader


def _hash_shards(shards: Sequence[Any]) -> str:
    """Identify files by their names and the manifest of their folder, else by size and time."""
    for place in shards:
        if not place.exists():
            raise DataError(f"{place} does not exist.", "Check data.path.")
    manifest = shards[0].parent / "manifest.json"
    if manifest.exists():
        return files.hash_json([files.hash_file(manifest), [place.name for place in shards]])
    stats = [(place.name, place.stat()) for place in shards]
    return files.hash_json([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def _hash(
    kind: str, source_hash: str, tokenizer: Tokenizer, length: int, options: dict[str, Any]
) -> str:
    return files.hash_json([VERSION, kind, source_hash, tokenizer.hash, length, options])


def _store(
    kind: str,
    out_dir: Any,
    blocks: Callable[[], Iterable[packing.Row]],
    tokenizer: Tokenizer,
    key: str,
    counter: Counter[str],
) -> dict[str, Any]:
    """Write rows, unless the folder already holds what would be written."""
    known = rows.reusable(out_dir, key)
    if known is not None:
        return known
    meta: dict[str, Any] = {
        "kind": kind,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "config_hash": key,
        "bytes_of_text": lambda: counter["bytes_of_text"],
        "examples": lambda: counter["examples"],
        "counts": lambda: dict(sorted(counter.items())),
    }
    return rows.write_rows(out_dir, blocks(), meta)


def _counted(
    found: Iterable[packing.Row], tokenizer: Tokenizer, counter: Counter[str]
) -> Iterator[packing.Row]:
    """Count examples and the bytes of the text they are to learn."""
    for example in found:
        counter["examples"] += 1
        learned = example["targets"][example["weights"] > 0]
        counter["bytes_of_text"] += examples.size_of(tokenizer.decode(learned.tolist()))
        yield example


def _fitting(
    found: Iterable[packing.Row], length: int, too_long: str, counter: Counter[str]
) -> Iterator[packing.Row]:
    """Truncate or drop long examples, and drop those that have nothing to learn from."""
    for example in found:
        if len(example["tokens"]) > length:
            if too_long == "drop":
                counter["too_long_dropped"] += 1
                continue
            counter["truncated"] += 1
            example = {name: values[:length] for name, values in example.items()}
        if not example["weights"].any():
            counter["without_targets_dropped"] += 1
            continue
        yield example


def _read_text(place: Any) -> str:
    try:
        text = files.path(place).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{place} does not exist.", "Check data.path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 text.", "Convert it to UTF-8.") from error
    if not text.strip():
        raise DataError(f"{place} is empty.", "Give a text.")
    return text


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise unknown(f"data.{name}", value, known)

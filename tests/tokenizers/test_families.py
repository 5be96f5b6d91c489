# SPDX-License-Identifier: Apache-2.0
"""Every family's tokenizer against the library it was made with, and its way through GGUF."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import llm.tokenizers
from llm.errors import ConfigError
from llm.models import gguf_tokenizer


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HERE = Path(__file__).parent
families = _module(HERE / "families.py")
strings = _module(HERE.parent / "goldens" / "strings.py")
NAMES = list(families.FAMILIES)


def open_family(family, place):
    place.mkdir(exist_ok=True)
    (place / "tokenizer.json").write_text(json.dumps(family.file))
    (place / "tokenizer_config.json").write_text(json.dumps(family.settings))
    return llm.tokenizers.load(place)


@pytest.fixture(scope="module", params=NAMES)
def case(request, texts, tmp_path_factory):
    """One family, its tokenizer, and strings that are full of its special tokens' names."""
    family = families.FAMILIES[request.param](texts)
    tokenizer = open_family(family, tmp_path_factory.mktemp(request.param))
    return SimpleNamespace(
        name=request.param,
        family=family,
        tokenizer=tokenizer,
        strings=strings.generate(2000, 0, tuple(tokenizer.special_tokens)),
    )


def test_texts_become_the_reference_ids(case):
    encoded = case.tokenizer.encode_batch(case.strings)
    for text, ids in zip(case.strings, encoded, strict=True):
        assert ids == case.family.reference(text), text


def test_texts_never_become_special_tokens(case):
    special = set(case.tokenizer.special_tokens.values())
    unknown = case.tokenizer.special_tokens.get(case.family.settings.get("unk_token"))
    for ids in case.tokenizer.encode_batch(case.strings):
        assert not (special - {unknown}) & set(ids)
    for name in case.tokenizer.special_tokens:
        ids = case.tokenizer.encode(f"a{name}b")
        assert case.tokenizer.special_tokens[name] not in set(ids) - {unknown}


def test_marked_texts_become_special_tokens(case):
    for name, index in case.tokenizer.special_tokens.items():
        ids, places = case.tokenizer.codec.encode_rendered(f"help {name}topics")
        assert index in ids
        assert places[ids.index(index)] == (5, 5 + len(name))


def test_saved_tokenizers_stay_the_same(case, tmp_path):
    case.tokenizer.save(tmp_path)
    opened = llm.tokenizers.load(tmp_path)
    assert opened.hash == case.tokenizer.hash
    assert opened.encode_batch(case.strings) == case.tokenizer.encode_batch(case.strings)


def test_gguf_metadata_give_the_same_tokenizer(case, tmp_path):
    size = case.tokenizer.vocab_size + 3
    if case.name in ("bert", "t5"):
        with pytest.raises(ConfigError, match="GGUF cannot hold"):
            gguf_tokenizer.write(case.tokenizer, size)
        return
    metadata = gguf_tokenizer.write(case.tokenizer, size)
    vocabulary = gguf_tokenizer.read(metadata, case.name)
    again = open_family(
        families.Family(vocabulary.file, vocabulary.settings, case.family.reference), tmp_path / "g"
    )
    assert again.special_tokens == case.tokenizer.special_tokens
    encoded = again.encode_batch(case.strings)
    assert encoded == case.tokenizer.encode_batch(case.strings)
    for ids in encoded:
        assert again.decode(ids) == case.tokenizer.decode(ids)

# SPDX-License-Identifier: Apache-2.0
"""The tokenizer stage and its report."""

import json
import subprocess
import sys

import pytest

import llm.tokenizers
from llm.core import config as configs
from llm.errors import ConfigError, DataError
from llm.tokenizers import measure, stage


@pytest.fixture
def config(tmp_path):
    config = configs.load_file("configs/tokenizer/tiny.py")
    config.tokenizer.vocab_size = 400
    lines = [
        {"id": str(i), "text": f"word{i % 9} and text {i} 漢\n", "source": "ab"[i % 2]}
        for i in range(300)
    ]
    for name, part in (("train", lines[:250]), ("validation", lines[250:])):
        text = "\n".join(json.dumps(line) for line in part)
        (tmp_path / f"{name}-00000.jsonl").write_text(text)
    config.data.path = str(tmp_path)
    return config


def test_run_writes_a_tokenizer_and_its_report(config, tmp_path, capsys):
    report = stage.run(config, str(tmp_path / "out"))
    tokenizer = llm.tokenizers.load(tmp_path / "out")
    assert tokenizer.hash == report["tokenizer_hash"]
    assert report == json.loads((tmp_path / "out" / "fertility.json").read_text())
    assert report["all"]["documents"] == 50 and report["all"]["round_trip"] == 1.0
    assert set(report["sources"]) == {"a", "b"} and report["measured_on"] == "validation"
    assert "lossless" in capsys.readouterr().out
    before = (tmp_path / "out" / "tokenizer" / "meta.json").stat().st_mtime_ns
    assert stage.run(config, str(tmp_path / "out")) == report
    assert "up to date" in capsys.readouterr().out
    assert (tmp_path / "out" / "tokenizer" / "meta.json").stat().st_mtime_ns == before
    config.tokenizer.name = "unigram"
    assert stage.run(config, str(tmp_path / "out"))["tokenizer_hash"] != tokenizer.hash


def test_wrong_settings_are_refused(config, tmp_path):
    config.tokenizer.name = "bpee"
    with pytest.raises(ConfigError, match="bpe"):
        stage.run(config, str(tmp_path / "out"))
    config.tokenizer.name = "bpe"
    config.data.path = str(tmp_path / "missing")
    with pytest.raises(DataError, match="No documents"):
        stage.run(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tiny", "bpe", "unigram", "byte_bpe", "wordpiece"])
def test_shipped_configs_bind(name):
    assert stage.check(configs.load_file(f"configs/tokenizer/{name}.py"))


def test_drawing_is_seeded_and_capped():
    items = [{"id": str(i), "text": "x" * 10} for i in range(100)]
    first = stage.draw(items, 0, 250)
    assert len(first) == 25 and first == stage.draw(items, 0, 250)
    assert first != stage.draw(items, 1, 250)
    assert [int(item["id"]) for item in first] == sorted(int(item["id"]) for item in first)
    assert stage.draw(items, 0, 10**6) == items
    assert len(stage.draw(items, 0, 1)) == 1


def test_ratios_against_a_count_by_hand(trained):
    tokenizer = trained["byte"]
    documents = [
        {"text": "ab cd", "source": "x"},
        {"text": "é", "source": "y"},
        {"text": "ab", "source": "x"},
    ]
    report = measure.fertility(tokenizer, documents)
    assert report["all"]["bytes"] == 9 and report["all"]["tokens"] == 9
    assert report["sources"]["x"]["tokens_per_word"] == round(7 / 3, 4)
    assert report["sources"]["x"]["vocabulary_used"] == round(5 / 256, 4)
    snow = measure.fertility(trained["char"], [{"text": "a☃", "source": ""}])
    assert snow["all"]["byte_fallback"] == 0.75


def test_no_heavy_imports():
    program = (
        "import sys, llm.tokenizers.stage, llm.tokenizers.huggingface, llm.tokenizers.loading;"
        "llm.tokenizers.load('byte').encode('x');"
        "print([m for m in ('jax', 'tensorflow', 'seqio', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr

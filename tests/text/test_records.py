# SPDX-License-Identifier: Apache-2.0
"""Readers and writers of document shards, with every kind of damage."""

import gzip
import json
import sys

import pytest
import zstandard

from llm import files
from llm.errors import DataError
from llm.text import records

DOCUMENTS = [
    {
        "id": f"d{i}",
        "text": f"Text {i} – ünïcode\nsecond line",
        "source": "made",
        "url": f"https://example.com/{i}",
        "licence": "CC0-1.0",
        "meta": {"n": i},
    }
    for i in range(40)
]


def lines(count=40):
    return b"".join(json.dumps(d).encode() + b"\n" for d in DOCUMENTS[:count])


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_what_is_written_is_read_back_with_the_same_bytes_every_time(tmp_path, suffix):
    target = tmp_path / f"shard{suffix}"
    facts = records.write_shard(target, [{**d, "_view": object()} for d in DOCUMENTS])
    assert list(records.read_documents(target)) == DOCUMENTS
    assert facts["count"] == 40 and facts["file"] == target.name
    assert facts["bytes"] == sum(len(d["text"].encode()) for d in DOCUMENTS)
    assert facts["sha"] == files.hash_file(target)
    assert records.write_shard(target, DOCUMENTS) == facts


def test_parquet_text_and_foreign_fields(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra data")
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra data")
    table = pyarrow.table({"body": ["one", "two"], "key": ["a", "b"], "score": [0.5, 1.5]})
    parquet.write_table(table, tmp_path / "a.parquet")
    read = list(records.read_documents(tmp_path / "a.parquet", text_field="body", id_field="key"))
    assert [(d["id"], d["text"], d["meta"]) for d in read] == [
        ("a", "one", {"score": 0.5}),
        ("b", "two", {"score": 1.5}),
    ]
    (tmp_path / "b.txt").write_text("plain text", encoding="utf-8")
    assert next(records.read_documents(tmp_path / "b.txt"))["text"] == "plain text"


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"jax-llm\[data\]"):
        list(records.read_documents(tmp_path / "a.parquet"))


def test_minimal_records_get_an_id_and_a_source(tmp_path):
    (tmp_path / "notes.jsonl").write_text('{"text": "a"}\n\n{"text": "b", "license": "MIT"}\n')
    read = list(records.read_documents(tmp_path / "notes.jsonl"))
    assert [d["id"] for d in read] == ["notes:1", "notes:3"]
    assert read[0]["source"] == "notes" and read[1]["licence"] == "MIT"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"{not json}\n", "not JSON"),
        (b'{"text": "\xff\xfe"}\n', "invalid UTF-8"),
        (b'{"other": 1}\n', "no text"),
        (b"[1]\n", "not a JSON object"),
        (b'{"text": 5}\n', "no text"),
    ],
)
def test_a_corrupt_line_is_skipped_and_counted(tmp_path, damage, reason):
    shard = tmp_path / "a.jsonl"
    shard.write_bytes(lines(20) + damage + lines())
    report = records.ReadReport()
    assert len(list(records.read_documents(shard, report=report))) == 60
    assert report.errors == 1 and reason in report.examples[0]["reason"]
    assert report.examples[0]["where"].endswith("a.jsonl:21")
    with pytest.raises(DataError, match=r"a\.jsonl, record 21"):
        list(records.read_documents(shard, max_error_rate=0.0))


def test_too_many_corrupt_lines_stop_the_read(tmp_path):
    shard = tmp_path / "a.jsonl"
    shard.write_bytes(lines(10) + b"oops\n" * 3)
    with pytest.raises(DataError, match="3 of 13 records are corrupt"):
        list(records.read_documents(shard))
    assert len(list(records.read_documents(shard, max_error_rate=0.5))) == 10
    shard.write_bytes(b"oops\n")
    with pytest.raises(DataError, match="corrupt"):
        list(records.read_documents(shard))


def test_a_cut_or_damaged_archive_is_noticed(tmp_path):
    whole = gzip.compress(lines())
    for name, data in (("cut", whole[:-20]), ("flipped", whole[:200] + b"\0" + whole[201:])):
        shard = tmp_path / f"{name}.jsonl.gz"
        shard.write_bytes(data)
        report = records.ReadReport()
        with pytest.raises(DataError, match=f"{name}.jsonl.gz"):
            list(records.read_documents(shard, max_error_rate=0.0, report=report))
        assert "broken" in report.examples[0]["reason"]
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(lines())
    shard = tmp_path / "flipped.jsonl.zst"
    shard.write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
    with pytest.raises(DataError, match=r"flipped\.jsonl\.zst"):
        list(records.read_documents(shard, max_error_rate=0.0))


def test_folders_globs_and_splits(tmp_path):
    for name, part in (("train-00000", DOCUMENTS[:3]), ("validation-00000", DOCUMENTS[3:5])):
        records.write_shard(tmp_path / f"{name}.jsonl.gz", part)
    assert len(list(records.read_documents(tmp_path))) == 5
    assert len(list(records.read_documents(tmp_path, split="validation"))) == 2
    assert len(list(records.read_documents(str(tmp_path / "t*.jsonl.gz")))) == 3
    with pytest.raises(DataError, match="no test split"):
        list(records.read_documents(tmp_path, split="test"))


def test_a_manifest_sets_order_and_splits(tmp_path):
    shards = []
    for i, split in enumerate(["train", "validation", "train"]):
        facts = records.write_shard(tmp_path / f"{9 - i}.jsonl", DOCUMENTS[i : i + 1])
        shards.append({**facts, "split": split})
    files.write_json(tmp_path / "manifest.json", {"shards": shards})
    assert [d["id"] for d in records.read_documents(tmp_path, "train")] == ["d0", "d2"]
    with pytest.raises(DataError, match="no test shards"):
        list(records.read_documents(tmp_path, "test"))
    (tmp_path / "8.jsonl").unlink()
    with pytest.raises(DataError, match=r"8\.jsonl is in the manifest but missing"):
        list(records.read_documents(tmp_path))


def test_nothing_to_read_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "x.pdf").write_text("?")
    for source, words in (
        (tmp_path / "missing.jsonl", "No documents"),
        (tmp_path / "*.csv", "No documents"),
        (tmp_path / "empty.jsonl", "no readable document"),
        (tmp_path / "x.pdf", "format"),
    ):
        with pytest.raises(DataError, match=words):
            list(records.read_documents(source))

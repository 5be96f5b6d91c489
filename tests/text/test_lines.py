# SPDX-License-Identifier: Apache-2.0
"""Lines and archive members are read within bounds."""

import gzip
import io
import json
import zipfile

import pytest
import zstandard

from llm import files
from llm.data import sources
from llm.errors import DataError
from llm.text import lines, records

PACK = {
    ".jsonl": lambda data: data,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture
def small(monkeypatch):
    """Lower the limits so that small files reach them."""
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    monkeypatch.setattr(lines, "FREE", 100_000)
    monkeypatch.setattr(lines, "MAX_MEMBER", 10_000)


@pytest.mark.parametrize("suffix", PACK)
def test_lines_of_every_kind(suffix, tmp_path):
    place = tmp_path / f"a{suffix}"
    place.write_bytes(PACK[suffix](b'{"a": 1}\r\n\n\xff\n{"b": 2}'))
    found = list(lines.read_lines(place))
    assert [line.content for line in found] == [b'{"a": 1}', b"", b"\xff", b'{"b": 2}']
    assert [line.number for line in found] == [1, 2, 3, 4]
    assert not any(line.problem for line in found)


@pytest.mark.parametrize("suffix", PACK)
def test_a_long_line_is_passed_over_and_the_next_one_read(suffix, tmp_path, small):
    place = tmp_path / f"a{suffix}"
    place.write_bytes(PACK[suffix](b"x" * 1000 + b"\n" + b"y" * 5000 + b"\nlast\n" + b"z" * 1001))
    found = list(lines.read_lines(place))
    assert [len(line.content) for line in found] == [1000, 0, 4, 0]
    assert [bool(line.problem) for line in found] == [False, True, False, True]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("line", [b"a" * 99 + b"\n", b"a" * 100], ids=["lines", "one line"])
def test_bombs_are_given_up_early(suffix, line, tmp_path, small):
    place = tmp_path / f"a{suffix}"
    place.write_bytes(PACK[suffix](line * 500_000))
    *_, last = lines.read_lines(place)
    assert "200 times" in last.problem
    # Not unpacked to its end: 200 times the size, and what was read ahead.
    assert last.number < 400_000


def test_zstd_windows_are_bounded(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=29)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    place = tmp_path / "a.jsonl.zst"
    place.write_bytes(packer.compress(b'{"text": "x"}\n') + packer.flush())
    assert "broken" in next(lines.read_lines(place)).problem


def test_members_are_bounded(small):
    def archive(content: bytes, claim: int | None = None) -> zipfile.ZipFile:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("a", content)
        opened = zipfile.ZipFile(buffer)
        if claim is not None:
            opened.getinfo("a").file_size = claim
        return opened

    assert lines.read_member(archive(b"plain"), "a") == b"plain"
    assert lines.read_member(archive(gzip.compress(b"packed")), "a") == b"packed"
    for bad in (archive(b"x" * 10_001), archive(gzip.compress(b"x" * 10_001))):
        with pytest.raises(ValueError, match="10000 bytes"):
            lines.read_member(bad, "a")
    with pytest.raises((zipfile.BadZipFile, EOFError, ValueError)):
        lines.read_member(archive(b"x" * 10_001, claim=100), "a")


@pytest.mark.parametrize("deep", ["[" * 200 + "]" * 200, '{"a":' * 5000 + "1" + "}" * 5000])
def test_deep_json_is_refused(deep, tmp_path):
    with pytest.raises(ValueError, match="deeper"):
        files.parse_json(deep)
    (tmp_path / "x.json").write_text(deep, encoding="utf-8")
    with pytest.raises(DataError, match="deeper"):
        files.read_json(tmp_path / "x.json")
    good = {"text": "words", "meta": {"many": [[1], [2]] * 100}}
    shard = tmp_path / "x.jsonl"
    shard.write_text(f"{json.dumps(good)}\n{deep}\n", encoding="utf-8")
    report = records.ReadReport()
    assert len(list(records.read_documents(shard, max_error_rate=0.5, report=report))) == 1
    assert "deeper" in report.examples[0]["reason"]
    with pytest.raises(DataError, match=r"line 2.*deeper"):
        list(sources.read(str(shard)))


def test_huge_numbers_and_long_files_are_refused(tmp_path, monkeypatch):
    place = tmp_path / "x.json"
    place.write_text("9" * 5000, encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        files.read_json(place)
    monkeypatch.setattr(files, "MAX_JSON", 100)
    with pytest.raises(DataError, match="longer than 100"):
        files.read_json(place)

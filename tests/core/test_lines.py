# SPDX-License-Identifier: Apache-2.0
"""Files of lines, on a disk and on a store that cannot append."""

import io

import pytest

from llm.core.lines import Lines

STORE: dict[str, str] = {}


class Remote:
    """A path of an object store: reads and writes whole objects."""

    def __init__(self, name):
        self.name = name.rsplit("/", 1)[-1]
        self.stem, self.suffix = self.name.rsplit(".", 1)[0], "." + self.name.rsplit(".", 1)[1]

    def with_name(self, name):
        return Remote(name)

    def exists(self):
        return self.name in STORE

    def read_text(self, **options):
        return STORE[self.name]

    def write_text(self, text):
        STORE[self.name] = text

    def open(self, *mode, **options):
        raise io.UnsupportedOperation("append")


@pytest.fixture(params=["disk", "store"])
def location(request, tmp_path, monkeypatch):
    if request.param == "disk":
        return tmp_path / "a" / "x.jsonl"
    STORE.clear()
    monkeypatch.setattr("llm.core.lines.files.path", Remote)
    return "gs://bucket/a/x.jsonl"


def test_lines_are_appended_over_restarts(location):
    Lines(location).append("one")
    again = Lines(location)
    again.append("two")
    again.append("three")
    assert Lines(location).read() == "one\ntwo\nthree\n"


def test_a_full_file_makes_room(location):
    lines = Lines(location, limit=100)
    for number in range(50):
        lines.append(f"line {number:04d}")
    older = type(lines)(str(location).replace("x.jsonl", "x.1.jsonl")).read().splitlines()
    newest = lines.read().splitlines()
    assert newest[-1] == "line 0049" and len(newest) <= 10
    assert int(older[-1].split()[1]) + 1 == int(newest[0].split()[1])

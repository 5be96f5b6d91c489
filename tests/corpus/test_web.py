# SPDX-License-Identifier: Apache-2.0
"""Web archives against fastwarc's reading, damage at every place, pages and wiki dumps."""

import base64
import gzip
import hashlib
import importlib
import io
import json
import random
import time

import pytest
import zstandard
from rich.console import Console

from llm.corpus import sources, stage, warc, wiki
from llm.errors import ConfigError, DataError
from llm.text import records

STORY = f"tells a story of its own. {'It goes on. ' * 30}</p></article></body></html>"
BODIES = [
    f"<html><body><article><p>{name} {STORY}"
    for name in ("Ada", "Grace", "Émilie", "Sofia", "Hedy")
]


def record(number, kind="response", status="200 OK", content="text/html; charset=utf-8", extra=""):
    body = BODIES[number % len(BODIES)].encode()
    if kind == "response":
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content}\r\n{extra}\r\n".encode()
        body = head + body
    digest = base64.b32encode(hashlib.sha1(body).digest()).decode()
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"WARC-Target-URI: http://example.com/{number}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Block-Digest: sha1:{digest}\r\nContent-Type: application/http\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


RECORDS = [record(0, kind="warcinfo"), *(record(n) for n in range(1, 9))]


def pack(parts, suffix):
    if suffix == ".gz":
        return [gzip.compress(part, mtime=0) for part in parts]
    if suffix == ".zst":
        return [zstandard.ZstdCompressor().compress(part) for part in parts]
    return list(parts)


def archive(tmp_path, suffix, parts=RECORDS):
    path = tmp_path / f"a.warc{suffix}"
    path.write_bytes(b"".join(pack(parts, suffix)))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_records_are_what_fastwarc_reads(tmp_path, suffix):
    from fastwarc.warc import ArchiveIterator

    path = archive(tmp_path, suffix)
    found = list(warc.records(path))
    data = path.read_bytes()
    if suffix == ".zst":  # its frames, decompressed
        data = b"".join(RECORDS)
    expected = [
        (dict((k.lower(), v) for k, v in r.headers), r.reader.read(), r.stream_pos)
        for r in ArchiveIterator(io.BytesIO(data), parse_http=False)
    ]
    assert [(r.headers, r.body) for r in found] == [(h, b) for h, b, _ in expected]
    assert not any(r.problem for r in found)
    lengths = [len(p) for p in pack(RECORDS, suffix)]
    assert [r.offset for r in found] == [sum(lengths[:i]) for i in range(len(lengths))]
    if suffix != ".zst":
        assert [r.offset for r in found] == [place for *_, place in expected]


def test_one_gzip_member_may_hold_all_records(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(b"".join(RECORDS)))
    assert len(list(warc.records(tmp_path / "a.warc.gz"))) == len(RECORDS)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_cut_anywhere_is_noticed_and_costs_one_record(tmp_path, suffix):
    packed = pack(RECORDS, suffix)
    whole = b"".join(packed)
    bounds = {sum(map(len, packed[:i])) for i in range(len(packed) + 1)}
    generator = random.Random(0)
    path = tmp_path / f"a.warc{suffix}"
    for cut in sorted(generator.sample(range(1, len(whole)), 60)):
        path.write_bytes(whole[:cut])
        found = list(warc.records(path))
        good = [r for r in found if not r.problem]
        inside = max(b for b in bounds if b <= cut)
        assert len(good) >= sum(b < inside for b in bounds)
        # Without compression, a record whose closing blank lines alone are gone is whole.
        if cut not in bounds and (suffix or not any(0 < b - cut <= 4 for b in bounds)):
            assert found[-1].problem and found[-1].offset == inside


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_damage_in_the_middle_spares_the_rest(tmp_path, suffix):
    packed = pack(RECORDS, suffix)
    start = sum(map(len, packed[:3]))
    data = bytearray(b"".join(packed))
    middle = start + len(packed[3]) * 3 // 4
    data[middle] ^= 0xFF
    path = tmp_path / f"a.warc{suffix}"
    path.write_bytes(data)
    found = list(warc.records(path))
    bad = [r for r in found if r.problem]
    assert len(found) - len(bad) == len(RECORDS) - 1
    assert {r.offset for r in bad} == {start}


def test_rubbish_between_records_is_reported(tmp_path):
    parts = [RECORDS[1], b"rubbish " * 100, RECORDS[2]]
    found = list(warc.records(archive(tmp_path, "", parts)))
    assert [bool(r.problem) for r in found] == [False, True, False]
    assert found[1].offset == len(RECORDS[1])
    broken = RECORDS[1].replace(b"Content-Length: ", b"Content-Length: x")
    found = list(warc.records(archive(tmp_path, "", [broken, RECORDS[2]])))
    assert found[0].problem and found[-1].headers["warc-record-id"] == "<urn:uuid:2>"


def test_oversized_records_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "BODY_LIMIT", 5000)
    body = b"x" * 2_000_000
    big = b"WARC/1.0\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(body), body)
    found = list(warc.records(archive(tmp_path, ".gz", [RECORDS[1], big, RECORDS[2]])))
    assert ["larger" in r.problem for r in found] == [False, True, False]


def pages_of(*parts):
    with_problem = []
    for part in parts:
        head, _, body = part.partition(b"\r\n\r\n")
        made = warc.Record(0, warc.parse_headers(head), body[:-4])
        with_problem.append(warc.page_of(made))
    return with_problem


def test_only_good_pages_count():
    good, missing, image, request, broken = pages_of(
        record(1),
        record(1, status="404 Not Found"),
        record(1, content="image/png"),
        record(1, kind="request"),
        record(1, extra="Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n").replace(
            b"\r\n\r\n<html>", b"\r\n\r\n5\r\n<html>"
        ),
    )
    assert good.url == "http://example.com/1" and good.body == BODIES[1].encode()
    assert good.charset == "utf-8" and missing is image is request is None
    assert "broken" in broken


def test_chunks_and_compression_are_undone():
    inner = gzip.compress(BODIES[1].encode())
    chunked = b"%x\r\n%s\r\n%x;x=1\r\n%s\r\n0\r\n\r\n" % (
        10,
        inner[:10],
        len(inner) - 10,
        inner[10:],
    )
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Encoding: gzip\r\n\r\n"
    )
    headers = {"warc-type": "response", "warc-target-uri": "http://x.org/"}
    made = warc.Record(0, headers, head + chunked)
    assert warc.page_of(made).body == BODIES[1].encode()


def run(tmp_path, name, **source):
    config = importlib.import_module(f"configs.corpus.{name}").get_config()
    for key, value in source.items():
        config.source[key] = value
    config.filters.names = ("length",)
    config.dedup.near = "off"
    config.engine.workers = 1
    out = tmp_path / "out"
    result = stage.run(config, str(out), Console(file=io.StringIO(), width=100))
    return out, result


def test_the_stage_reads_archives_and_pages(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    parts = pack(RECORDS[:5], ".gz")
    parts[2] = parts[2][: len(parts[2]) // 2]
    (folder / "a.warc.gz").write_bytes(b"".join(parts))
    wet = record(0, kind="conversion").replace(b"application/http", b"text/plain")
    (folder / "b.warc.wet.gz").write_bytes(gzip.compress(wet))
    (folder / "c.html").write_bytes(BODIES[1].replace("Grace", "Maria").encode("utf-16"))
    (folder / "d.htm.gz").write_bytes(gzip.compress(BODIES[2].encode())[:-3])
    with pytest.raises(DataError, match="1 of 2 records are corrupt"):
        run(tmp_path, "web", path=str(folder), max_error_rate=0.0)
    out, result = run(tmp_path, "web", path=str(folder), max_error_rate=0.6)
    read = {d.get("url", d["id"]): d for d in records.read_documents(out)}
    assert set(read) == {"http://example.com/0", *(f"http://example.com/{n}" for n in (1, 3, 4)),
                         "c.html"} - {"http://example.com/9"}  # fmt: skip
    assert read["c.html"]["text"].startswith("Maria tells a story")
    assert read["http://example.com/3"]["meta"]["offset"] > 0
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == result["read_errors"] == 2
    assert f"byte {len(parts[0]) + len(parts[1])}" in rejected[0]["where"]


def test_wrong_sources_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"source\.path is empty"):
        sources.get("web").plan()
    with pytest.raises(DataError, match=r"No \.warc or like files"):
        sources.get("web").plan(path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"source\.mode"):
        sources.get("web").plan(path=str(tmp_path), mode="slow")


PAGE = """<page><title>{title}</title><ns>{ns}</ns><id>{id}</id>{more}
<revision><id>99</id><text xml:space="preserve">{text}</text></revision></page>"""
WIKITEXT = """{{Infobox|a={{b|c}}|d=[[x]]}}
&lt;!-- hidden --&gt;'''Ada''' was a [[mathematician|computing pioneer]] from
[[London]].&lt;ref&gt;{{cite|x}}
not this&lt;/ref&gt; She wrote [http://example.com/x notes]&lt;ref name="a" /&gt; on the ''engine''.
[[File:Ada.jpg|thumb|A [[portrait]] of her]]
{| class="t"
| cell {{n}}
|}
== Work ==
* first &amp;amp; best
__NOTOC__
== References ==
{{reflist}}
[[Category:People]]"""  # fmt: skip
PLAIN = """Ada was a computing pioneer from
London. She wrote notes on the engine.

Work

first & best"""


def dump(*pages):
    return ("<mediawiki>\n<siteinfo/>\n" + "\n".join(pages) + "\n</mediawiki>").encode()


def page(title, text=WIKITEXT, ns=0, number=1, more=""):
    return PAGE.format(title=title, text=text, ns=ns, id=number, more=more)


@pytest.mark.parametrize("suffix", ["", ".bz2", ".gz"])
def test_wiki_articles(tmp_path, suffix):
    import bz2

    data = dump(
        page("Ada"), page("Talk:Ada", ns=1), page("A", more='<redirect title="Ada" />'), page("B")
    )
    pack_with = {"": bytes, ".bz2": bz2.compress, ".gz": gzip.compress}[suffix]
    (tmp_path / f"d.xml{suffix}").write_bytes(pack_with(data))
    report = records.ReadReport()
    source = sources.get("wiki")
    plan = source.plan(path=str(tmp_path))
    read = list(source.read(plan.shards[0], report))
    assert [d["meta"]["title"] for d in read] == ["Ada", "B"] and not report.errors
    assert read[0]["text"] == PLAIN and read[0]["id"].endswith(":1")


def test_broken_wiki_pages_are_reported_and_passed_over(tmp_path):
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
    pages = [
        page("good"),
        page("bad", text="<b>unclosed"),
        page("entity", text="&b;"),
        page("cut")[:80],
        page("last", number=7),
    ]
    data = bomb.encode() + dump(*pages)
    path = tmp_path / "d.xml"
    path.write_bytes(data)
    found = list(wiki.articles(path))
    assert [bool(a.problem) for a in found] == [False, True, True, True, False]
    assert [data[a.offset : a.offset + 6] for a in found] == [b"<page>"] * 5
    path.write_bytes(data[:-60])
    assert "ends inside" in list(wiki.articles(path))[-1].problem


@pytest.mark.parametrize(
    "unit",
    [
        "{{",
        "{|",
        "[[",
        "[[a|",
        "<ref>",
        "<ref",
        "<!--",
        "[http://a ",
        "=",
        "\n=a",
        "'",
        "[//",
        "{{|}",
        "]]",
        "<math>[[",
        "&#999999999",
    ],
)
def test_hostile_wikitext_costs_little(unit):
    text = unit * (400_000 // len(unit))
    start = time.process_time()
    wiki.plain_text(text)
    assert time.process_time() - start < 3  # under 1 s on a free core


@pytest.mark.slow
def test_tensorflow_datasets(tmp_path):
    import tensorflow_datasets as tfds

    texts = [f"document {i} of a small dataset" for i in range(10)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="small",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={"train": [(i, {"text": t}) for i, t in enumerate(texts)]},
        data_dir=str(tmp_path),
    )
    source = sources.get("tfds")
    plan = source.plan(dataset="small", data_dir=str(tmp_path), shards=3)
    read = [d for s in plan.shards for d in source.read(s, records.ReadReport())]
    assert sorted(d["text"] for d in read) == texts and len({d["id"] for d in read}) == 10

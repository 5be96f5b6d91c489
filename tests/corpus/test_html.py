# SPDX-License-Identifier: Apache-2.0
"""Main text of pages: what stays, what goes, encodings, and pages made to hurt."""

import time

import pytest

from llm.corpus import encoding, furniture, html
from llm.errors import ConfigError

BODY = [
    "The harbour authority published its yearly survey of tides and currents on Monday morning.",
    "Measurements were taken at fourteen stations, twice a day, over a period of eleven months.",
    "According to the report, the mean level rose by three millimetres and kept rising in spring.",
    "Engineers will now decide whether the old quay needs another course of stone before winter.",
]
PAGE = """<!DOCTYPE html><html><head><title>Tides are rising - The Daily Gull</title>
<script>var x = "<p>not text</p>";</script><style>p {{ color: red }}</style></head>
<body><header><nav><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li></ul></nav>
</header><article><h1>Tides are rising</h1><p>By Ann Example</p>{body}
<p>Read more: <a href="/x">Ten harbours that will astonish you</a></p>
<p>Sign up for our newsletter and get the latest news in your inbox.</p></article>
<aside><h3>Related articles</h3><ul><li><a href="/a">Storm season begins early this year</a></li>
<li><a href="/b">Council votes on the ferry timetable</a></li></ul></aside>
<footer>© 2024 The Daily Gull. All rights reserved.</footer></body></html>"""
FURNITURE = ("not text", "color: red", "Home", "Read more", "newsletter", "Related", "Storm season",
             "rights reserved", "Ann Example")  # fmt: skip


def page(paragraphs=BODY):
    return PAGE.format(body="".join(f"<p>{p}</p>" for p in paragraphs))


@pytest.mark.parametrize("mode", ["quality", "fast"])
def test_the_article_and_only_the_article(mode):
    text = html.extract_text(page(), mode)
    assert [line for line in text.split("\n") if line] == BODY
    assert not [f for f in FURNITURE if f in text]
    assert html.extract_text(page().encode(), mode) == text


def test_quality_is_the_default_and_modes_are_checked():
    assert html.extract_text(page()) == html.extract_text(page(), "quality")
    with pytest.raises(ConfigError, match="Did you mean 'quality'"):
        html.extract_text("x", "qualty")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package trafilatura"):
        html.extract_text(page())
    assert BODY[0] in html.extract_text(page(), "plain")


def test_a_failing_or_slow_library_hands_over(monkeypatch):
    import trafilatura

    def fails(*args, **options):
        raise ValueError("broken tree")

    def hangs(*args, **options):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            sum(range(100))

    expected = html.extract_text(page(), "fast")
    monkeypatch.setattr(trafilatura, "extract", fails)
    assert html.extract_text(page()) == expected
    monkeypatch.setattr(trafilatura, "extract", hangs)
    start = time.monotonic()
    assert html.extract_text(page(), time_limit=0.2) == expected
    assert time.monotonic() - start < 5
    monkeypatch.setattr(html, "_fast", fails)
    assert BODY[0] in html.extract_text(page(), time_limit=0.2)


CYRILLIC = "Прилив поднимается каждый год, и порт готовится к зиме заранее. " * 5
JAPANESE = "港の潮位は毎年少しずつ上がっており、市は冬までに岸壁を直す予定です。" * 8
FRENCH = "Déjà l'été où l'œuvre naïve coûte 5 € à Besançon – dit-on à l'hôtel. " * 5


@pytest.mark.parametrize(
    ("text", "codec", "label"),
    [
        (CYRILLIC, "cp1251", "windows-1251"),
        (CYRILLIC, "koi8-r", "koi8-r"),
        (JAPANESE, "shift_jis", "Shift_JIS"),
        (JAPANESE, "euc-jp", "EUC-JP"),
        (FRENCH, "cp1252", "iso-8859-1"),  # as browsers read it
        (FRENCH, "utf-8", "utf-8"),
        (CYRILLIC, "utf-8", "iso-8859-1"),  # the bytes know better than the label
        (FRENCH, "utf-8", "no-such-codec"),
        (FRENCH, "utf-8", "base64"),  # a codec that is not one of text
        (FRENCH, "cp1252", "utf-8"),
        (CYRILLIC, "cp1251", ""),
        (JAPANESE, "euc-jp", ""),
    ],
)
def test_encodings(text, codec, label):
    meta = f'<meta charset="{label}">' if label else ""
    data = f"<html><head>{meta}</head><body><p>{text}</p></body></html>".encode(codec)
    assert text.strip() in encoding.decode(data)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(codec):
    assert encoding.decode(FRENCH.encode(codec)) == FRENCH


HOSTILE = {
    "deep": "<div>" * 60_000 + "x" + "</div>" * 60_000,
    "deep_unclosed": "<b><i><span>" * 20_000,
    "tables": "<table><tr><td>" * 15_000,
    "open_tags": "<" * 150_000,
    "open_quotes": '<a href="' * 60_000,
    "open_quotes_closed": '<a ">' * 30_000,
    "comments": "<!--" * 120_000,
    "half_comments": "<!-- -" * 80_000 + ">",
    "end_tags": "<nav>" * 30_000 + "</form>" * 30_000,
    "links": "<a href=x>" * 60_000,
    "scripts": "<script>" * 60_000,
    "titles": "<title>" * 60_000 + "<h1>" * 60_000,
    "references": "&#" + "9" * 500_000 + ";" + "&" * 200_000,
    "one_attribute": "<p " + "a=1 " * 120_000 + ">text</p>",
    "nul": "\x00<p>a\x00b</p>" * 8_000,
    "surrogates": "<p>\ud800 lone \udfff</p>" * 1000,
    "paragraphs": "<p>a" * 30_000,
    "entities_in_titles": "<title>" + "&#" * 60_000 + "</title>",
    "cdata": "<![CDATA[" * 60_000,
    "spaces": "<p>" + " " * 600_000 + "</p>",
    "one_line": "<p>" + "by " * 200_000 + "</p>",
    "empty": "",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_pages_end_soon_without_an_error(name):
    for mode in html.MODES:
        start = time.process_time()
        text = html.extract_text(HOSTILE[name], mode, time_limit=2)
        assert time.process_time() - start < 6, mode  # about 1 s on a free core
        text.encode("utf-8")


def test_random_bytes_never_raise():
    import random

    generator = random.Random(0)
    parts = [b"<p>", b"</p>", b"<!--", b"-->", b"<table>", b"</td>", b"<a href='", b"'>", b"&amp;",
             b"&#x", b"<script>", b"\xff\xfe", b"\xc3", b"text ", b"<title>", b"\x00", b"<svg>",
             b"<![CDATA[", b"]]>", b"<?xml", b"<html", b">"]  # fmt: skip
    for _ in range(25):
        data = b"".join(generator.choices(parts, k=200))
        for mode in html.MODES:
            assert isinstance(html.extract_text(data, mode), str)


def test_furniture_spares_prose():
    known = furniture.hints(["Tides are rising - Gull"], ["Storm season begins early"])
    prose = [
        "By the time the ship arrived, the harbour was empty and the crew had gone home.",
        "Share prices fell on Monday.",
        "Updated figures will be available next week, the ministry said.",
        "Read the whole report before you judge it, he said.",
        "Comments made by the mayor were met with laughter.",
        "Related species live further north, where the water is colder.",
    ]
    assert furniture.strip(prose, known) == prose
    lines = ["Tides are rising", "3 comments", *prose, "Storm season begins early", "Tags: sea"]
    assert furniture.strip(lines, known) == prose

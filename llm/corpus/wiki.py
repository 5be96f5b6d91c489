# SPDX-License-Identifier: Apache-2.0
"""Read MediaWiki XML dumps page by page, and turn wikitext into plain text.

Each <page> is cut out of the stream and parsed alone: memory stays bounded, a broken page harms no
other, and no document type, so no entity of a file's own making, ever reaches the parser.
"""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from llm.corpus import streams

PAGE_LIMIT = 1 << 25  # bytes of one page's XML
OPEN, CLOSE = b"<page>", b"</page>"
WANTED = ("title", "ns", "id", "redirect", "text")


class Article(NamedTuple):
    """A page's title, namespace, id, whether it redirects, and wikitext; or what is wrong."""

    offset: int
    fields: dict[str, str]
    problem: str = ""


def articles(path: Path) -> Iterator[Article]:
    """Yield the pages of a dump (.xml, .xml.bz2, .xml.gz, .xml.zst) in order.

    Offsets count bytes of the decompressed stream.
    """
    buffer, base = bytearray(), 0
    for piece in streams.pieces(path):
        if piece.problem:
            yield Article(base, {}, f"{piece.problem}, at byte {piece.offset} of the file")
            base += len(buffer)
            buffer.clear()
            continue
        buffer += piece.data
        while True:
            start = buffer.find(OPEN)
            if start < 0:
                passed = max(0, len(buffer) - len(OPEN))
                del buffer[:passed]
                base += passed
                break
            stop = buffer.find(CLOSE, start)
            again = buffer.find(OPEN, start + 1, stop if stop >= 0 else len(buffer))
            if again >= 0 or (stop < 0 and len(buffer) - start > PAGE_LIMIT):
                yield Article(base + start, {}, "a page has no end")
                passed = again if again >= 0 else len(buffer)
            elif stop < 0:
                break
            else:
                passed = stop + len(CLOSE)
                yield _parse(base + start, bytes(buffer[start:passed]))
            del buffer[:passed]
            base += passed
    if OPEN in buffer:
        yield Article(base, {}, "the dump ends inside a page")


def _parse(offset: int, page: bytes) -> Article:
    """Parse one <page> element; the last revision's text wins."""
    fields: dict[str, list[str]] = {}
    path: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        path.append(name)
        if name == "redirect":
            fields["redirect"] = [attributes.get("title", "")]
        elif name == "text":
            fields["text"] = []

    def end(name: str) -> None:
        path.pop()

    def data(text: str) -> None:
        name = path[-1]
        if name == "text" or (len(path) == 2 and name in WANTED):
            fields.setdefault(name, []).append(text)

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = data
    try:
        parser.Parse(page, True)
    except expat.ExpatError as error:
        return Article(offset, {}, f"broken XML ({error})")
    return Article(offset, {name: "".join(parts) for name, parts in fields.items()})


# Comments, and elements whose content is no running text.
CUT = re.compile(
    r"<(?:(!--)|(ref|math|gallery|timeline|score|syntaxhighlight|source|chem|imagemap)\b[^<>]{0,300}>)",
    re.IGNORECASE,
)
TAG = re.compile(r"</?[a-zA-Z][^<>]{0,500}>")
NESTED = re.compile(r"\{\{|\}\}|\{\||\|\}")
LINK = re.compile(r"\[\[|\]\]")
EXTERNAL = re.compile(r"\[(?:https?:)?//[^\s\]]{1,500}+(?:[ \t]{1,9}([^\]\n]{0,500}))?\]")
HEADING = re.compile(r"^(={1,6})([^\n]{1,300}?)\1[ \t]{0,20}$", re.MULTILINE)
BEHAVIOUR = re.compile(r"__[A-Z]{3,30}__")
LIST = re.compile(r"^[*#:;]{1,20}\s*", re.MULTILINE)
LAST_SECTIONS = {
    "references", "external links", "see also", "notes", "further reading", "bibliography",
    "sources", "citations", "footnotes", "einzelnachweise", "weblinks", "literatur",
    "références", "liens externes", "voir aussi", "notes et références", "referencias",
    "enlaces externos", "véase también", "note", "collegamenti esterni", "примечания", "ссылки",
    "литература",
}  # fmt: skip


def plain_text(wikitext: str) -> str:
    """Return an article's running text; time is linear in its length.

    Templates, tables, notes, files, categories and the closing sections of references go; link
    texts, headings and list items stay.
    """
    text = _without_nested(_without_elements(wikitext))
    text = _links(text)
    text = EXTERNAL.sub(lambda found: found[1] or "", text)
    text = TAG.sub("", text)
    text = unescape(re.sub(r"&#[0-9a-fA-FxX]{8,};", "", text))
    text = BEHAVIOUR.sub("", re.sub(r"'{2,5}", "", text))
    text = LIST.sub("", _sections(text))
    lines = [line.strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without_elements(text: str) -> str:
    """Cut comments and elements like <ref>; what is never closed loses only its tag."""
    lower, kept, last = text.lower(), [], 0
    unclosed: set[str] = set()  # searched for once, so that hostile text costs no more
    for mark in CUT.finditer(text):
        if mark.start() < last:
            continue
        closing = "-->" if mark[1] else f"</{mark[2].lower()}"
        stop = mark.end()
        if not mark[0].endswith("/>") and closing not in unclosed:
            found = lower.find(closing, stop)
            close = lower.find(">", found) if found >= 0 else -1
            if close < 0:
                unclosed.add(closing)
            else:
                stop = close + 1
        kept.append(text[last : mark.start()])
        last = stop
    return "".join([*kept, text[last:]])


def _without_nested(text: str) -> str:
    """Cut {{templates}} and {| tables |}, however nested; unclosed ones stay."""
    depth, begin, last = 0, 0, 0
    kept: list[str] = []
    for mark in NESTED.finditer(text):
        if mark[0] in ("{{", "{|"):
            if not depth:
                begin = mark.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                kept.append(text[last:begin])
                last = mark.end()
    return "".join([*kept, text[last:]])


def _links(text: str) -> str:
    """Replace [[target|shown]] by what is shown; files and categories show nothing."""
    stack: list[list[str]] = [[]]
    last = 0
    for mark in LINK.finditer(text):
        stack[-1].append(text[last : mark.start()])
        last = mark.end()
        if mark[0] == "[[":
            stack.append([])
        elif len(stack) > 1:
            inner = "".join(stack.pop())
            target, _, shown = inner.partition("|")
            prefix, colon, rest = target.partition(":")
            if colon and rest and not target.startswith(":") and prefix.strip().isalpha():
                continue  # File:, Category:, a language's prefix
            stack[-1].append(shown.rpartition("|")[2] if shown else target.lstrip(":"))
        if len(stack) > 50:  # no article nests so deep
            inner = "".join("".join(part) for part in stack)
            stack = [[inner]]
    stack[-1].append(text[last:])
    return "".join("".join(part) for part in stack)


def _sections(text: str) -> str:
    """Cut from the first closing section on; headings become plain lines."""
    for heading in HEADING.finditer(text):
        if heading[2].strip().lower() in LAST_SECTIONS:
            text = text[: heading.start()]
            break
    return HEADING.sub(lambda found: f"\n{found[2].strip()}\n", text)

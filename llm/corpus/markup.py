# SPDX-License-Identifier: Apache-2.0
"""Cut HTML into tags and text in time linear in its length, whatever it holds.

The rules are the tokenizer's of the HTML standard as far as text needs them. What never ends (a
comment, a tag, a script) reaches to the end of the page, as in browsers, so nothing is ever read
twice.
"""

import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple

# Content that holds no tags; that of the second kind may hold character references.
RAW = {"script", "style", "xmp", "iframe", "noembed", "noframes"}
REFERENCED = {"title", "textarea"}
_BRACKET = re.compile(r"<(?=[A-Za-z/!?])")  # any other is text
_NAME = re.compile(r"[A-Za-z][^\s/>\0]*")
_TAG_END = re.compile(r"=\s*[\"']|>")
_LONG_REFERENCE = re.compile(r"&#(?:[0-9]{8,}|[xX][0-9a-fA-F]{8,});?")  # beyond Unicode
_ENDS = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in sorted(RAW | REFERENCED)
}


class Token(NamedTuple):
    """A piece of a page: kind "start" or "end" with a tag's name, or "text" with its characters."""

    kind: str
    value: str


def tokens(page: str) -> Iterator[Token]:
    """Yield the tags and texts of a page in order; comments and declarations are left out."""
    at = 0
    while at < len(page):
        found = _BRACKET.search(page, at)
        bracket = found.start() if found else len(page)
        if bracket > at:
            yield Token("text", _decoded(page[at:bracket]))
        if found is None:
            return
        following = page[bracket + 1]
        if following.isalpha():
            name, at = _start_tag(page, bracket)
            if at < 0:
                return
            yield Token("start", name)
            if name in _ENDS:
                end = _ENDS[name].search(page, at)
                inner = page[at : end.start() if end else len(page)]
                yield Token("text", inner if name in RAW else _decoded(inner))
                at = end.start() if end else len(page)
        elif following == "/" and (name_found := _NAME.match(page, bracket + 2)):
            yield Token("end", name_found[0].lower())
            at = _after(page, ">", bracket)
        else:
            at = _after_comment(page, bracket)


def _start_tag(page: str, bracket: int) -> tuple[str, int]:
    """Return a tag's name and where it ends (-1: never), minding quoted attribute values."""
    name = _NAME.match(page, bracket + 1)
    if name is None:
        return "", -1
    at = name.end()
    while found := _TAG_END.search(page, at):
        if found[0] == ">":
            return name[0].lower(), found.end()
        closing = page.find(found[0][-1], found.end())
        if closing < 0:
            break
        at = closing + 1
    return "", -1


def _after_comment(page: str, bracket: int) -> int:
    """Return where a comment, declaration or processing instruction ends."""
    if not page.startswith("<!--", bracket):
        return _after(page, ">", bracket)
    for empty in ("<!-->", "<!--->"):
        if page.startswith(empty, bracket):
            return bracket + len(empty)
    return _after(page, "-->", bracket)


def _after(page: str, mark: str, at: int) -> int:
    found = page.find(mark, at)
    return len(page) if found < 0 else found + len(mark)


def _decoded(text: str) -> str:
    """Replace character references."""
    return unescape(_LONG_REFERENCE.sub("\ufffd", text)) if "&" in text else text

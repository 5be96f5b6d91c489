# SPDX-License-Identifier: Apache-2.0
"""Plain text out of HTML, with the standard library's parser."""

import codecs
import re
from html.parser import HTMLParser

from llm.errors import ConfigError

MODES = ("plain",)
BLOCKS = {
    "p", "div", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd",
    "table", "tr", "td", "th", "section", "article", "header", "footer", "blockquote", "pre",
    "title", "main", "figure", "figcaption",
}  # fmt: skip
HIDDEN = {"script", "style", "nav", "noscript", "template", "svg", "head", "button", "form"}
VOID = {"br", "hr", "img", "input", "meta", "link", "wbr", "source", "col"}
META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset=[\"']?\s*([\w-]{1,40})", re.IGNORECASE)


def extract_text(html: str | bytes, mode: str = "plain") -> str:
    """Return the readable text of a page: blocks on their own lines, hidden parts left out.

    Args:
        html: a page; bytes are decoded by BOM, then `<meta charset>`, then UTF-8.
        mode: one of `MODES`.

    Raises:
        ConfigError: the mode is not known.
    """
    if mode not in MODES:
        raise ConfigError(f"Extraction mode {mode!r} is not known.", f"Use one of {MODES}.")
    parser = _TextParser()
    parser.feed(html if isinstance(html, str) else decode(html))
    parser.close()
    return parser.text()


def decode(page: bytes) -> str:
    """Decode a page's bytes; undecodable bytes become U+FFFD."""
    for mark, encoding in _MARKS.items():
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, errors="replace")
    declared = META_CHARSET.search(page[:4096])
    encoding = declared.group(1).decode("ascii", errors="replace") if declared else "utf-8"
    try:
        codecs.lookup(encoding)
    except LookupError:
        encoding = "utf-8"
    return page.decode(encoding, errors="replace")


_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class _TextParser(HTMLParser):
    """Collect text; `pre` keeps its line breaks, everything else is re-flowed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in HIDDEN and tag not in VOID:
            self.hidden.append(tag)
        if tag == "pre":
            self.preformatted += 1
        if tag in BLOCKS:
            self.parts.append("\n")
        if tag == "body":  # a head that was never closed must not hide the page
            self.hidden.clear()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            while self.hidden.pop() != tag:
                continue
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)
        if tag in BLOCKS:
            self.parts.append("\n\n" if tag in {"p", "pre", "h1", "h2", "h3", "dl"} else "\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = [line.rstrip() for line in "".join(self.parts).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

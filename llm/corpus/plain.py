# SPDX-License-Identifier: Apache-2.0
"""Plain text out of HTML in one linear pass: no tree, no library, no judgement of content."""

import re
from collections import Counter

from llm.corpus import markup

BLOCKS = {
    "p", "div", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "dl", "dt", "dd",
    "table", "tr", "td", "th", "section", "article", "header", "footer", "blockquote", "pre",
    "title", "main", "figure", "figcaption",
}  # fmt: skip
PARAGRAPHS = {"p", "pre", "h1", "h2", "h3", "dl"}
HIDDEN = {"script", "style", "nav", "noscript", "template", "svg", "head", "button", "form"}


def plain_text(page: str) -> str:
    """Return all visible text of a page: blocks on their own lines, hidden parts left out."""
    collector = _Collector()
    for token in markup.tokens(page):
        if token.kind == "text":
            collector.data(token.value)
        elif token.kind == "start":
            collector.start(token.value)
        else:
            collector.end(token.value)
    return collector.text()


class _Collector:
    """Collect text; `pre` keeps its line breaks, everything else is re-flowed."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.hidden: list[str] = []
        self.open: Counter[str] = Counter()
        self.preformatted = 0

    def start(self, tag: str) -> None:
        if tag in HIDDEN:
            self.hidden.append(tag)
            self.open[tag] += 1
        if tag == "pre":
            self.preformatted += 1
        if tag in BLOCKS:
            self.parts.append("\n")
        if tag == "body":  # a head that was never closed must not hide the page
            self.hidden.clear()
            self.open.clear()

    def end(self, tag: str) -> None:
        if self.open[tag] > 0:
            while self.hidden:
                closed = self.hidden.pop()
                self.open[closed] -= 1
                if closed == tag:
                    break
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)
        if tag in BLOCKS:
            self.parts.append("\n\n" if tag in PARAGRAPHS else "\n")

    def data(self, data: str) -> None:
        if self.hidden or not data:
            return
        self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = [line.rstrip() for line in "".join(self.parts).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()

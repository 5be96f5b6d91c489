# SPDX-License-Identifier: Apache-2.0
"""The main text of web pages, in a careful, a fast and a plain way.

"quality": trafilatura in its precision mode, checked against resiliparse's reading of the page
(where less than half is left, trafilatura's balanced mode decides), without page furniture.
"fast": resiliparse's main content without page furniture. "plain": all visible text, by this
project's own linear parser. A careful way that fails on a page hands it to the next one.
"""

import ctypes
import importlib.util
import itertools
import logging
import re
import threading
from collections import Counter
from html import unescape
from types import TracebackType
from typing import Any

from llm.corpus import furniture
from llm.corpus.encoding import decode
from llm.corpus.plain import plain_text
from llm.errors import ConfigError, unknown

MODES = ("quality", "fast", "plain")
NEEDS = {"quality": ("trafilatura", "resiliparse"), "fast": ("resiliparse",), "plain": ()}
LONGEST = 20_000_000  # characters of a page that are looked at
CAREFUL = 3_000_000  # characters up to which trafilatura is worth its time
MANY_TAGS = 3_000  # below this number nesting cannot be deep enough to harm
DEEPEST = 1_500  # levels of nesting that tree parsers are trusted with
LINKS, TITLES = 3_000, 20
# Bounded, so that a page of unclosed tags costs a multiple of its length and no more.
LINK = re.compile(r"<[aA]\s[^>]{0,1000}>([^<]{0,200}(?:<(?!/[aA])[^<]{0,200}){0,8})</[aA]")
HEADLINE = re.compile(
    r"<([hH]1|title|TITLE)[^>]{0,500}>([^<]{0,300}(?:<(?!/[hH]1|/title|/TITLE)[^<]{0,300}){0,8})<"
)
OPEN_GRAPH = re.compile(r"""og:title["'][^>]{0,100}?content=["']([^"'>]{1,300})["']""")
TAG = re.compile(r"<[^>]{0,1000}>")
TAGS = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,20})")
UNNESTED = {"br", "hr", "img", "input", "meta", "link", "wbr", "source", "col", "p", "li"}
# What libraries raise on pages that break their assumptions.
FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError,
            RuntimeError, SyntaxError, TypeError, ValueError)  # fmt: skip


class _TimedOut(BaseException):
    """End an extraction that takes too long; a BaseException, so that libraries let it pass."""


def extract_text(html: str | bytes, mode: str = "quality", *, time_limit: float = 10.0) -> str:
    """Return the main text of a page, a paragraph or heading per line; "" where there is none.

    Never raises because of the page: hostile or broken ones fall back to a plainer mode.

    Args:
        html: a page; bytes are decoded by byte-order mark, validity as UTF-8, declaration, guess.
        mode: "quality", "fast" (ten times as many pages per second) or "plain".
        time_limit: seconds after which "quality" gives way to "fast" for this page.

    Raises:
        ConfigError: the mode is not known, or its library is not installed.
    """
    if mode not in MODES:
        raise unknown("extraction mode", mode, MODES)
    require(mode)
    page = (html if isinstance(html, str) else decode(html))[:LONGEST]
    page = page.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")
    if mode == "plain" or _deep(page):
        return plain_text(page)
    if mode == "quality":
        try:
            with _Deadline(time_limit):
                return _quality(page)
        except (_TimedOut, *FAILURES):
            mode = "fast"
    try:
        return _fast(page)
    except FAILURES:
        return plain_text(page)


def require(mode: str) -> None:
    """Raise ConfigError where the library of a mode is missing."""
    for name in NEEDS[mode]:
        if not importlib.util.find_spec(name):
            raise ConfigError(
                f"Extraction mode {mode!r} needs the package {name}.",
                'Run: pip install "jax-llm[corpus]", or use mode "plain".',
            )


def _quality(page: str) -> str:
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it drops is no event
    if len(page) > CAREFUL:
        return _fast(page)
    lines, known = _read(page)
    fast = furniture.strip(lines, known)
    options: dict[str, Any] = {"include_comments": False, "output_format": "txt"}
    found = trafilatura.extract(page, favor_precision=True, **options)
    text = furniture.strip((found or "").split("\n"), known)
    if _words(text) < 0.5 * _words(fast):
        found = trafilatura.extract(page, **options)
        balanced = furniture.strip((found or "").split("\n"), known)
        text = max(text, balanced, key=_words)
    return "\n".join(text or fast)


def _fast(page: str) -> str:
    return "\n".join(furniture.strip(*_read(page)))


def _read(page: str) -> tuple[list[str], furniture.Hints]:
    """Return resiliparse's lines of main content, and the headlines and links of the page."""
    from resiliparse.extract.html2text import extract_plain_text

    text = extract_plain_text(page, main_content=True, alt_texts=False, list_bullets=False)
    links = [_inner(found[1]) for found in itertools.islice(LINK.finditer(page), LINKS)]
    titles = [_inner(found[2]) for found in itertools.islice(HEADLINE.finditer(page), TITLES)]
    titles += [_inner(found[1]) for found in itertools.islice(OPEN_GRAPH.finditer(page), TITLES)]
    return text.split("\n"), furniture.hints(titles, links)


def _inner(markup: str) -> str:
    text = TAG.sub(" ", markup) if "<" in markup else markup
    return unescape(text) if "&" in text else text


def _words(lines: list[str]) -> int:
    return sum(len(line.split()) for line in lines)


def _deep(page: str) -> bool:
    """Tell whether tags nest so deep that tree parsers, which recurse, are at risk."""
    if page.count("<") < MANY_TAGS:
        return False
    depth = 0
    opened: Counter[str] = Counter()
    for closing, found in TAGS.findall(page):
        name = found.lower()
        if name in UNNESTED or (closing and not opened[name]):
            continue  # an end tag closes only what is open: `<nav></div>` nests
        step = -1 if closing else 1
        opened[name] += step
        depth += step
        if depth > DEEPEST:
            return True
    return False


class _Deadline:
    """Raise _TimedOut in this thread when the time is up; needs Python code to be running."""

    def __init__(self, seconds: float):
        self.thread = threading.get_ident()
        self.timer = threading.Timer(seconds, self._fire)
        self.timer.daemon = True
        self.lock = threading.Lock()
        self.done = self.fired = False

    def _fire(self) -> None:
        with self.lock:
            if not self.done:
                self.fired = True
                _raise_in(self.thread, _TimedOut)

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.lock:
            self.done = True
        self.timer.cancel()
        if self.fired and kind is not _TimedOut:
            _raise_in(self.thread, None)  # what was sent and has not arrived must not arrive later


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(kind) if kind else None
    )

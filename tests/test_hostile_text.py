# SPDX-License-Identifier: Apache-2.0
"""Every rule that reads documents, answers or pages takes time linear in a hostile line.

A pattern whose time grows with the square of the line needs minutes for a megabyte, so a second
parts the two clearly. The fast tier reads shorter lines, on which squares already take too long.
"""

import functools
import re
import time
from collections.abc import Callable

import pytest

from llm.core.redact import redact
from llm.corpus import docstrings, filters, html, units
from llm.eval import exact_match
from llm.text import functions, normalize, pii, refusals, terms
from llm.tokenizers import base, chat, template

# These need a file made beforehand, and compute with hashes of words and bytes: no patterns.
WITH_FILES = {"quality_model", "perplexity", "decontaminate"}
FAST, WHOLE = 1 << 15, 1 << 20  # characters
SECONDS = 1.0

# What a line repeats. Runs of one character, alternations, and beginnings without an end.
PIECES = (
    *("a", "A", "1", " ", "\t", "\n", "\r", ".", "-", "_", "'", '"', "@", "#", "(", "[", "{", "<"),
    *(
        "&",
        "\\",
        "/",
        ":",
        "=",
        "+",
        "%",
        "é",
        "\u200b",
        "Ã",
        "Ã©",
        "\u3000",
        "😀",
        "👩\u200d",
        "\ud800",
        "`",
    ),
    *("a.", "a-", "a ", ". ", ".a", "a@", "@a", "a@a.", "a@a.aa", "a.a@", "1.", "1,", "1 ", "1-"),
    *("-1", "0.", "::", ":a", "f:", "1:", "a'", " \n", "\n ", "\n\n", "\n\n\n\n", ")(", "[1]"),
    *("[edit", "[citation needed", "lorem ipsum", "{}", "a\n", ". \n", "...", "• ", "!?", "”’)"),
    *("<a ", "<a b='", "<!--", "<![", "</", "<nav>", "<nav>a</div>", "<div>", "<script>", "<p"),
    *("&#", "&#9", "&amp", "<title>", "<pre>", "``", ":a:`", "`a <", "a(", "->", "e.g. ", "def "),
    *("GB82", "DE12 ", "4111 ", "+1 (", "555-", "::1", "1.2.3.", "hf_", "sk-", "eyJ", "AKIA"),
    *("password=", 'secret="', "token:", "://a:", "--a", "-----BEGIN ", "#### ", "<|end|>", "<|"),
)


def _filter(name: str) -> Callable[[str], object]:
    rules = filters.build([name])
    return lambda text: [filters.apply(rule, [_document(text)]) for _, rule in rules]


def _unit(name: str) -> Callable[[str], object]:
    def cut(text: str) -> str:  # every other unit goes
        count = len(units.measure([text], name).hashes)
        return units.without(text, [(name, place, place + 1) for place in range(0, count, 2)])

    return cut


def _document(text: str) -> dict:
    return {"id": "x", "text": text, "source": "x", "meta": {"lm_bits_per_byte": 1.0}}


def _normalise(text: str) -> str:
    options = normalize.Options(form="NFKC", quotes=True, lower=True, unwrap=True, emoji=True)
    return normalize.normalize(text, options)


def _mark(text: str) -> chat.Marked:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    return chat.mark(
        chat.DEFAULT_TEMPLATE, messages, {"bos_token": ""}, base.SPECIAL_TOKENS, ["\n"]
    )


def _escape(text: str) -> str:
    source = "{{ messages[0].content | replace('a', 'b') | trim | title | tojson }}"
    return template.render(source, [{"role": "user", "content": text}], {})


def _fast_html() -> Callable[[str], str]:
    pytest.importorskip("resiliparse", reason="the fast reader is resiliparse's")
    return functools.partial(html.extract_text, mode="fast")


def _detector(name: str) -> Callable[[str], object]:
    detector = pii.DETECTORS[name]
    if detector.needs:
        pytest.importorskip(detector.needs, reason=f"{name} needs {detector.needs}")
    return functools.partial(pii.redact, types=(name,))


RULES: dict[str, Callable[[], Callable[[str], object]]] = {
    "refusals": lambda: refusals.is_refusal,
    **{f"pii {name}": functools.partial(_detector, name) for name in pii.DETECTORS},
    **{
        f"filter {name}": functools.partial(_filter, name)
        for name in filters.FILTERS
        if name not in WITH_FILES
    },
    **{f"units {name}": functools.partial(_unit, name) for name in units.UNITS},
    "genders": lambda: terms.swap_genders,
    "normalise": lambda: _normalise,
    "repair": lambda: normalize.repair_mojibake,
    "html": lambda: functools.partial(html.extract_text, mode="plain"),
    "html fast": lambda: _fast_html(),
    "html bytes": lambda: (
        lambda text: html.extract_text(text.encode("utf-8", "replace"), mode="plain")
    ),
    "summary": lambda: docstrings.summary_of,
    "function": lambda: lambda text: functions.function_of({**_document(text), "meta": {}}),
    "exact match": lambda: exact_match.normalise,
    "marked number": lambda: exact_match.marked_number,
    "last number": lambda: exact_match.last_number,
    "secrets": lambda: redact,
    "chat": lambda: _mark,
    "template": lambda: _escape,
    "bytes": lambda: lambda text: base.storable(text),
}


def slow_pieces(
    rule: Callable[[str], object], size: int, most: float = SECONDS
) -> dict[str, float]:
    """Return the pieces whose repetition takes a rule more than so many seconds of its own."""
    slow = {}
    for piece in PIECES:
        line = (piece * (size // len(piece) + 1))[:size]
        started = time.process_time()
        rule(line)
        seconds = time.process_time() - started
        if seconds > most:
            slow[piece] = round(seconds, 1)
    return slow


@pytest.mark.parametrize("name", RULES)
def test_hostile_lines(name):
    assert not slow_pieces(RULES[name](), FAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_hostile_megabytes(name):
    assert not slow_pieces(RULES[name](), WHOLE)


def test_the_check_finds_a_square():
    square = re.compile(r"\w*%x")
    assert slow_pieces(square.search, 8192, most=0.1)

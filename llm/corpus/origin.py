# SPDX-License-Identifier: Apache-2.0
"""Rules on where a document comes from and in which language and under which licence it stands."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llm.corpus.documents import Document, Drop, Outcome, judge
from llm.errors import ConfigError, DataError
from llm.text.language import detect

# Words in addresses of pages that are no reading matter. Longer lists are the user's to bring.
ADDRESS_WORDS = ("porn", "xxx", "casino", "viagra", "camgirl", "escorts")
CREATIVE = re.compile(
    r"creativecommons\.org/(?:licenses/(by(?:-nc)?(?:-nd|-sa)?)/(\d\.\d)|publicdomain/(zero|mark))",
    re.IGNORECASE,
)
NAMED = re.compile(
    r"\b(?:CC|Creative Commons)[ -](BY(?:-NC)?(?:-ND|-SA)?)[ -](\d\.\d)\b|\b(CC0)(?:[ -]1\.0)?\b"
    r"|SPDX-License-Identifier:[ \t]{0,4}([\w.+-]{2,40})",
    re.IGNORECASE,
)
SPDX = {"mark": "PDM-1.0", "zero": "CC0-1.0", "cc0": "CC0-1.0"}
EDGE = 3_000  # characters at both ends of a text in which a licence is looked for


def language(
    batch: list[Document], *, languages: tuple[str, ...] = ("en",), min_score: float = 0.65
) -> list[Outcome]:
    """Keep documents in one of the languages; note language and score in meta.

    Args:
        batch: documents.
        languages: ISO 639 codes; empty keeps all and only notes them.
        min_score: probability that the named language must reach.
    """
    results: list[Outcome] = []
    for document in batch:
        code, score = detect(document["text"])
        noted = {"language": code, "language_score": round(score, 3)}
        if languages and code not in languages:
            results.append(Drop(f"language_{code or 'none'}", score, min_score))
            continue
        checks = [("language_unsure", score, min_score if languages else 0.0, 1)]
        results.append(judge(document, checks, {**document, "meta": {**document["meta"], **noted}}))
    return results


def url(
    batch: list[Document],
    *,
    block: tuple[str, ...] = (),
    block_file: str = "",
    allow: tuple[str, ...] = (),
    allow_file: str = "",
    block_words: tuple[str, ...] = ADDRESS_WORDS,
) -> list[Outcome]:
    """Keep documents by their address; documents without one stay unless a list allows.

    Args:
        batch: documents.
        block, block_file: domains (with all below them) or "domain/path" beginnings that go;
            the file has one per line, "#" begins a comment.
        allow, allow_file: if any are given, only these stay.
        block_words: words of an address, whole between marks, that end it.
    """
    blocked, allowed = _domains(tuple(block), block_file), _domains(tuple(allow), allow_file)
    words = frozenset(word.lower() for word in block_words)
    results: list[Outcome] = []
    for document in batch:
        address = str(document.get("url") or "")
        names = _names(address)
        found = re.split(r"[\W_]+", unquote(address[:2000]).lower()) if words and address else []
        outcome: Outcome = document
        if allowed and not any(name in allowed for name in names):
            outcome = Drop("url_not_allowed", 0, 1)
        elif any(name in blocked for name in names):
            outcome = Drop("url_blocked", 1, 0)
        elif not words.isdisjoint(found):
            outcome = Drop("url_word", 1, 0)
        results.append(outcome)
    return results


def same_address(address: str) -> str:
    """Return an address so that equal pages have equal ones; "" where there is none."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host = (parts.hostname or "").rstrip(".").removeprefix("www.")
    except ValueError:
        return address
    query = f"?{parts.query}" if parts.query else ""
    return f"{host}{parts.path.rstrip('/')}{query}" if host else ""


def _names(address: str) -> list[str]:
    """List what a domain list may hold for an address: its host's suffixes, and paths below."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return []
    labels = host.split(".")[-10:]
    names = [".".join(labels[i:]) for i in range(len(labels))] if host else []
    steps = [step for step in parts.path.split("/")[:8] if step]
    plain = host.removeprefix("www.")
    return names + ["/".join([plain, *steps[: i + 1]]) for i in range(len(steps))]


@functools.lru_cache(maxsize=32)
def _domains(given: tuple[str, ...], file: str) -> frozenset[str]:
    return frozenset(
        line.lower()
        .removeprefix("http://")
        .removeprefix("https://")
        .removeprefix("www.")
        .strip("/")
        for line in [*given, *read_list(file)]
    )


@functools.lru_cache(maxsize=32)
def read_list(file: str) -> tuple[str, ...]:
    """Read a user's list: one entry per line, without comments and blank lines.

    Raises:
        DataError: the file cannot be read.
    """
    if not file:
        return ()
    try:
        text = Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The list {file} cannot be read ({error}).", "Give a UTF-8 file, one entry per line."
        ) from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def licence(
    batch: list[Document],
    *,
    allowed: tuple[str, ...] = (),
    unknown: str = "keep",
    read_text: bool = True,
) -> list[Outcome]:
    """Tag documents with the licence they state, and keep those whose licence is allowed.

    Args:
        batch: documents; one with a licence keeps it.
        allowed: SPDX identifiers or beginnings of them ("CC-BY" covers "CC-BY-SA-4.0"); empty
            allows all.
        unknown: "keep" or "drop" documents that state none.
        read_text: look for a statement in the text's first and last characters.
    """
    if unknown not in ("keep", "drop"):
        raise ConfigError(f"licence.unknown is {unknown!r}.", 'Choose "keep" or "drop".')
    results: list[Outcome] = []
    for document in batch:
        tag = str(document.get("licence") or "")
        if not tag and read_text:
            tag = stated_licence(document["text"])
            document = {**document, "licence": tag} if tag else document
        outcome: Outcome = document
        if not tag and unknown == "drop":
            outcome = Drop("licence_unknown", 0, 1)
        elif tag and allowed and not _allows(allowed, tag):
            outcome = Drop("licence_not_allowed", 0, 1)
        results.append(outcome)
    return results


def _allows(allowed: Iterable[str], tag: str) -> bool:
    lower = tag.lower()
    return any(lower == a.lower() or lower.startswith(f"{a.lower()}-") for a in allowed)


def stated_licence(text: str) -> str:
    """Return the SPDX identifier of a Creative Commons or SPDX statement in a text, or ""."""
    for part in (text[-EDGE:], text[:EDGE]):
        found = CREATIVE.search(part)
        if found:
            if found[3]:
                return SPDX[found[3].lower()]
            return f"CC-{found[1].upper()}-{found[2]}"
        named = NAMED.search(part)
        if named:
            if named[1]:
                return f"CC-{named[1].upper()}-{named[2]}"
            return "CC0-1.0" if named[3] else named[4]
    return ""

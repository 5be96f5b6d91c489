# SPDX-License-Identifier: Apache-2.0
"""Find and hide personal data in text. Each type is a detector in `DETECTORS`."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from llm.errors import ConfigError
from llm.text.suggest import did_you_mean


class Span(NamedTuple):
    """A found piece: text[start:end]."""

    start: int
    end: int


LOCAL_MAX, DOMAIN_MAX = 64, 253  # RFC 5321 limits; they also bound the work per "@"
LOCAL = re.compile(r"[\w.%+'-]{1,64}\Z")
LOCAL_EDGE = ".%+'-"  # marks that wrap an address more often than they begin one
DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}")
# Attribute names that follow a matrix product in code (`a@b.shape`), never a domain's end.
NOT_DOMAINS = {
    "append", "array", "astype", "conj", "deleter", "dot", "dtype", "flatten", "getter", "imag",
    "inv", "item", "mean", "ndim", "ravel", "real", "reshape", "setter", "shape", "size", "sum",
    "tolist", "transpose", "value", "values",
}  # fmt: skip


def find_emails(text: str) -> Iterator[Span]:
    """Yield e-mail addresses; work is bounded by the number of "@" signs."""
    at = text.find("@")
    floor = 0
    while at != -1:
        span = _email_around(text, at, floor)
        if span:
            yield span
            floor = span.end
        at = text.find("@", at + 1)


def _email_around(text: str, at: int, floor: int) -> Span | None:
    domain = DOMAIN.match(text, at + 1, at + 1 + DOMAIN_MAX)
    if not domain or at == floor:
        return None
    start = max(floor, at - LOCAL_MAX)
    window = text[start:at]
    cut = max(map(window.rfind, ' \t\n<>()[]:;,"\\')) + 1
    found = LOCAL.search(window[cut:]) if cut < len(window) else None
    if not found:
        return None
    local = found.group().lstrip(LOCAL_EDGE)
    if not local or local.endswith(".") or ".." in local:
        return None
    if domain.group().rpartition(".")[2].lower() in NOT_DOMAINS:
        return None
    following = text[domain.end() : domain.end() + 1]
    if following and (following.isalnum() or following in "_("):
        return None  # `x@module.function(` is code, and a cut label is no domain
    return Span(at - len(local), domain.end())


class Detector(NamedTuple):
    """A type of personal data: how to find it and what stands in its place."""

    find: Callable[[str], Iterator[Span]]
    label: str
    pseudonym: Callable[[str], str]


DETECTORS: dict[str, Detector] = {
    "email": Detector(find_emails, "<EMAIL>", lambda digest: f"user-{digest}@example.com"),
}
STYLES = ("label", "pseudonym")


def redact(
    text: str, types: tuple[str, ...] = ("email",), style: str = "label", seed: int = 0
) -> tuple[str, dict[str, int]]:
    """Replace personal data and count what was replaced per type.

    Args:
        text: any text; a line of a megabyte costs no more than a megabyte of lines.
        types: names in `DETECTORS`, applied in this order.
        style: "label" puts `<EMAIL>`; "pseudonym" puts the same stand-in for the same value.
        seed: keys the pseudonyms.

    Raises:
        ConfigError: a type or style is not known.
    """
    check(types, style)
    counts: dict[str, int] = {}
    for name in types:
        detector = DETECTORS[name]
        pieces, last = [], 0
        for span in detector.find(text):
            stand_in = detector.label
            if style == "pseudonym":
                value = f"{seed}:{text[span.start : span.end].lower()}".encode()
                stand_in = detector.pseudonym(hashlib.blake2b(value, digest_size=4).hexdigest())
            pieces += [text[last : span.start], stand_in]
            last = span.end
        if pieces:
            counts[name] = len(pieces) // 2
            text = "".join([*pieces, text[last:]])
    return text, counts


def check(types: tuple[str, ...], style: str = "label") -> None:
    """Raise ConfigError for a type or style that does not exist."""
    for name in types:
        if name not in DETECTORS:
            raise ConfigError(*did_you_mean("Personal-data type", name, DETECTORS))
    if style not in STYLES:
        raise ConfigError(*did_you_mean("Redaction style", style, STYLES))

# SPDX-License-Identifier: Apache-2.0
"""Find and hide personal data in text. Each type is a detector in `DETECTORS`."""

import functools
import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

from llm.errors import ConfigError, unknown
from llm.text import identifiers
from llm.text.identifiers import Span

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
    """A type of personal data: how to find it, what stands in its place, what it needs.

    canonical brings spellings of one value together, so that they get one pseudonym.
    """

    find: Callable[[str], Iterator[Span]]
    label: str
    pseudonym: str = "<{label}-{digest}>"
    canonical: Callable[[str], str] = str.lower
    needs: str = ""


def _squeezed(value: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", value).upper()


def _dialled(value: str) -> str:
    digits = re.sub(r"\D", "", value).removeprefix("00")
    return digits if len(digits) != 10 else f"1{digits}"


def _address(value: str) -> str:
    return ipaddress.ip_address(value).compressed


# In order of precedence: where two overlap, the one named first stands.
DETECTORS: dict[str, Detector] = {
    "email": Detector(find_emails, "EMAIL", "user-{digest}@example.com"),
    "secret": Detector(identifiers.find_secrets, "SECRET", canonical=str),
    "iban": Detector(identifiers.find_ibans, "IBAN", canonical=_squeezed),
    "card": Detector(identifiers.find_cards, "CARD", canonical=_squeezed),
    "ipv6": Detector(identifiers.find_ipv6, "IPV6", canonical=_address),
    "ipv4": Detector(identifiers.find_ipv4, "IPV4", canonical=_address),
    "ssn": Detector(identifiers.find_ssns, "SSN", canonical=_squeezed),
    "phone": Detector(identifiers.find_phones, "PHONE", canonical=_dialled, needs="phonenumbers"),
}
STYLES = ("label", "pseudonym")


def redact(
    text: str, types: tuple[str, ...] = ("email",), style: str = "label", seed: int = 0
) -> tuple[str, dict[str, int]]:
    """Replace personal data and count what was replaced per type.

    Args:
        text: any text; a line of a megabyte costs no more than a megabyte of lines.
        types: names in `DETECTORS`.
        style: "label" puts `<EMAIL>`; "pseudonym" puts the same stand-in for the same value.
        seed: keys the pseudonyms; keep it secret where values could be guessed.

    Raises:
        ConfigError: a type or style is not known, or its package is not installed.
    """
    check(types, style)
    found: list[tuple[int, int, int]] = []  # start, precedence, end
    names = [name for name in DETECTORS if name in types]
    for precedence, name in enumerate(names):
        found += [(s.start, precedence, s.end) for s in DETECTORS[name].find(text)]
    counts: dict[str, int] = {}
    pieces, last = [], 0
    for start, precedence, end in _without_overlaps(found):
        name = names[precedence]
        counts[name] = counts.get(name, 0) + 1
        pieces += [text[last:start], _stand_in(DETECTORS[name], text[start:end], style, seed)]
        last = end
    return "".join([*pieces, text[last:]]), counts


def _without_overlaps(found: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Keep, of overlapping spans, the one of higher precedence; return them by place."""
    kept: list[tuple[int, int, int]] = []
    for span in sorted(found):
        while kept and kept[-1][2] > span[0] and kept[-1][1] > span[1]:
            kept.pop()
        if not kept or kept[-1][2] <= span[0]:
            kept.append(span)
    return kept


def _stand_in(detector: Detector, value: str, style: str, seed: int) -> str:
    if style == "label":
        return f"<{detector.label}>"
    key = f"{detector.label}:{seed}".encode()
    canonical = detector.canonical(value).encode("utf-8", "replace")
    digest = hashlib.blake2b(canonical, digest_size=6, key=key).hexdigest()
    return detector.pseudonym.format(label=detector.label, digest=digest)


@functools.cache
def available() -> tuple[str, ...]:
    """Return the types whose packages are installed."""
    return tuple(n for n, d in DETECTORS.items() if not d.needs or find_spec(d.needs))


def check(types: tuple[str, ...], style: str = "label") -> None:
    """Raise ConfigError for a type or style that does not exist."""
    for name in types:
        if name not in DETECTORS:
            raise unknown("personal-data type", name, DETECTORS)
        if name not in available():
            raise ConfigError(
                f"Personal data of type {name} needs the package {DETECTORS[name].needs}.",
                f'Run: pip install "jax-llm[corpus]", or leave {name} out.',
            )
    if style not in STYLES:
        raise unknown("redaction style", style, STYLES)

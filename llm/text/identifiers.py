# SPDX-License-Identifier: Apache-2.0
"""Find numbers and keys that point at a person or an account.

Every finder checks what its pattern cannot: check digits, address syntax, numbering plans. Work per
character is bounded, whatever the text.
"""

import functools
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple


class Span(NamedTuple):
    """A found piece: text[start:end]."""

    start: int
    end: int


# A card number as it is written; looked ahead for, so that a number before it hides nothing.
CARD = re.compile(
    r"(?<![\w.+-])(?=(\d{14,19}(?!\d)|\d{4}([ -])\d{4}\2\d{4}\2\d{4}|\d{4}([ -])\d{6}\3\d{4,5})"
    r"(?![\w-])(?!\.\d))"
)
# First digits of payment card networks, with the lengths they issue.
NETWORKS = re.compile(
    r"(?:4\d{15}(?:\d{3})?"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}(?:\d{3})?"  # Discover
    r"|(?:352[89]|35[3-8]\d)\d{12}"  # JCB
    r"|(?:30[0-5]\d|36\d\d|3[89]\d\d)\d{10}"  # Diners Club
    r"|62\d{14,17}|(?:50\d\d|5[6-9]\d\d|6\d{3})\d{8,15})\Z"  # UnionPay, Maestro
)


def find_cards(text: str) -> Iterator[Span]:
    """Yield payment card numbers: a network's prefix and length, and a right Luhn digit."""
    for found in CARD.finditer(text):
        digits = re.sub(r"[ -]", "", found[1])
        if NETWORKS.match(digits) and luhn(digits):
            yield Span(*found.span(1))


def luhn(digits: str) -> bool:
    """Tell whether the last digit is the check digit of those before it (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?=[ A-Z0-9])")
# Lengths of national IBANs (SWIFT's registry).
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32,
    "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31,
    "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip


def find_ibans(text: str) -> Iterator[Span]:
    """Yield international bank account numbers of a country's length whose remainder is 1."""
    for found in IBAN_START.finditer(text):
        wanted = IBAN_LENGTHS.get(found[0][:2])
        end = _walk(text, found.start(), wanted) if wanted else -1
        if end < 0 or (end < len(text) and text[end].isalnum()):
            continue
        number = text[found.start() : end].replace(" ", "")
        if int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1:
            yield Span(found.start(), end)


def _walk(text: str, start: int, count: int) -> int:
    """Return where `count` capitals and digits end, single spaces between them aside, or -1."""
    at, left = start, count
    while left and at < len(text):
        char = text[at]
        if char == " " and left < count and text[at - 1] != " ":
            at += 1
        elif char.isascii() and (char.isdigit() or char.isupper()):
            at, left = at + 1, left - 1
        else:
            return -1
    return at if not left else -1


OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
IPV4 = re.compile(rf"(?<![\w.:-])(?:{OCTET}\.){{3}}{OCTET}(?![\w-])(?!\.\d)")
VERSION = re.compile(r"(?:\bv|\bver|version|release|build|revision|section|chapter|==|>=|<=|~=)"
                     r"[\s.:=]{0,3}\Z", re.IGNORECASE)  # fmt: skip
# (?=(…))\1 is a possessive group; those of Python before 3.11.5 keep what a failed turn has read.
COLON = re.compile(
    r"(?<![\w:.%])(?:[0-9A-Fa-f]{1,4})?:[0-9A-Fa-f:]*+(?=((?:\.\d{1,3}){0,3}))\1(?![\w:])"
)


def find_ipv4(text: str) -> Iterator[Span]:
    """Yield IPv4 addresses, but for loopback, "any" and netmasks, and not version numbers."""
    for found in IPV4.finditer(text):
        first = found[0].partition(".")[0]
        if first in ("0", "127", "255") or VERSION.search(text, found.start() - 14, found.start()):
            continue
        yield Span(*found.span())


def find_ipv6(text: str) -> Iterator[Span]:
    """Yield IPv6 addresses with a digit in them, but for loopback and "any"."""
    for found in COLON.finditer(text):
        piece = found[0].rstrip(":") if not found[0].endswith("::") else found[0]
        if not 3 <= len(piece) <= 45 or piece.count(":") < 2 or not any(map(str.isdigit, piece)):
            continue
        try:
            address = ipaddress.IPv6Address(piece)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified):
            yield Span(found.start(), found.start() + len(piece))


SSN = re.compile(
    r"(?<![\w.-])(?!000|666|9)\d{3}(?P<mark>[- ])(?!00)\d{2}(?P=mark)(?!0000)\d{4}(?![\w-])(?!\.\d)"
)
SSN_WORDS = re.compile(r"\b(?:ssn|social|security|tax(?:payer)?|tin)\b", re.IGNORECASE)


def find_ssns(text: str) -> Iterator[Span]:
    """Yield United States social security numbers; spaced ones only where words announce them."""
    for found in SSN.finditer(text):
        before = text[max(0, found.start() - 40) : found.start()]
        if found["mark"] == "-" or SSN_WORDS.search(before):
            yield Span(*found.span())


# Issued keys carry their issuer's prefix; lengths are bounded so that no text costs more.
KEYS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{50,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|xox[abeprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{20,250}"
    r"|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,250}|GOCSPX-[A-Za-z0-9_-]{28}"
    r"|(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,250}|whsec_[A-Za-z0-9+/=]{32,64}"
    r"|sk-(?:proj-|ant-|or-|svcacct-)?[A-Za-z0-9_-]{20,250}|hf_[A-Za-z0-9]{30,64}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}|dop_v1_[a-f0-9]{64}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{30,64}|(?:AC|SK)[0-9a-f]{32}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,2000}"
    r")(?![A-Za-z0-9_-])"
)
NAMED = re.compile(
    r"(?:api[_-]?key|secret(?:[_-]?(?:access)?[_-]?key)?|access[_-]?token|auth[_-]?token|token"
    r"|password|passwd|pwd|client[_-]?secret|private[_-]?key)[\"']?"
    r"[ \t]{0,4}(?:=>|:=|[:=])[ \t]{0,4}"
    r"[\"']?([A-Za-z0-9_\-/+=.~]{16,200})(?![A-Za-z0-9_\-/+=.~(\[])",
    re.IGNORECASE,
)
BEGIN_KEY = re.compile(r"-----BEGIN (?:[A-Z0-9]{2,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
END_KEY = re.compile(r"-----END (?:[A-Z0-9]{2,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
RANDOM_BITS = 3.0  # entropy per character from which a value is no word


def find_secrets(text: str) -> Iterator[Span]:
    """Yield keys by their issuers' prefixes, private key blocks, and random values given a name."""
    spans = [Span(*found.span()) for found in KEYS.finditer(text)]
    spans += [Span(*found.span(1)) for found in NAMED.finditer(text) if _looks_random(found[1])]
    at = 0
    while begin := BEGIN_KEY.search(text, at):
        end = END_KEY.search(text, begin.end())
        if not end:
            break
        spans.append(Span(begin.start(), end.end()))
        at = end.end()
    yield from sorted(spans)


def _looks_random(value: str) -> bool:
    """Tell a random value from a name, a path or a number: mixed characters, high entropy."""
    letters, digits = sum(map(str.isalpha, value)), sum(map(str.isdigit, value))
    if not letters or digits < 2 or value.count("/") > 3 or value.count(".") > 2:
        return False
    counts = Counter(value)
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return entropy >= RANDOM_BITS


PHONE = re.compile(
    r"(?<![\w+.,/=#:-])(?:\(?\+|(?<!\d[ ()])(?:00(?=[1-9]))?)"
    r"\(?\d(?:(?:[-./ ]| ?\(| ?\)[- ]?| - )?\d){6,24}"
)
NORTH_AMERICAN = re.compile(
    r"(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d(?P<mark>[-. ]))[2-9]\d\d[-. ]\d{4}\Z"
)
PHONE_WORDS = re.compile(
    r"\b(?:tel|phone|telephone|mobile|cell|fax|call|whatsapp|telefon|tél|téléphone|teléfono"
    r"|telefone|telefono|handy|hotline|mobil)\b[^\w\n]{0,3}"
    r"(?:(?:no|nr|number|is|us|me|at|us at)\b[^\w\n]{1,3})?\Z",
    re.IGNORECASE,
)
DECIMAL = re.compile(r"[.,]\d")
# Numbering plans tried for numbers that a word announces but that name no country.
REGIONS = ("US", "GB", "DE", "FR", "IN", "ES", "IT", "BR", "AU", "NL", "MX", "JP")
LIBRARY_CALLS = 2_000  # per text; beyond them the pattern alone decides


def find_phones(text: str) -> Iterator[Span]:
    """Yield telephone numbers that a numbering plan knows (needs the package phonenumbers).

    International numbers and North American ones in their usual forms count anywhere, others
    after a word such as "tel".
    """
    calls = 0
    for found in PHONE.finditer(text):
        piece, start = found[0], found.start()
        if piece.startswith("(") and ")" not in piece[:8]:  # the brackets wrap the number
            start += 1
            piece = piece[1:].partition(")")[0]
        announced = PHONE_WORDS.search(text, max(0, start - 30), start) is not None
        if piece.count(")") > piece.count("("):
            piece = piece.partition(")")[0]
        following = text[found.end() : found.end() + 2]
        if following[:1].isalnum() or following[:1] in ("-", "_") or DECIMAL.match(following):
            piece = piece.rpartition(" ")[0]
        # The last groups may be other numbers: "+49 30 123456 12 boats".
        for _ in range(5):
            regions = _plans(piece, announced)
            calls += len(regions)
            if regions and (calls > LIBRARY_CALLS or _valid_phone(piece, regions)):
                yield Span(start, start + len(piece))
                break
            piece = piece.rpartition(" ")[0]


def _plans(piece: str, announced: bool) -> tuple[str, ...]:
    """Return the numbering plans to look a number up in; "" stands for the one it names."""
    if not 7 <= sum(map(str.isdigit, piece)) <= 15:
        return ()
    if piece.startswith(("+", "00", "(+")):
        return ("",)
    if NORTH_AMERICAN.match(piece):
        return ("US",)
    return REGIONS if announced else ()


@functools.lru_cache(maxsize=10_000)
def _valid_phone(piece: str, regions: tuple[str, ...]) -> bool:
    library = _phonenumbers()
    number = f"+{piece[2:]}" if piece.startswith("00") and regions == ("",) else piece
    for region in regions:
        try:
            parsed = library.parse(number, region or None)
        except library.NumberParseException:
            continue
        if library.is_valid_number(parsed):
            return True
    return False


@functools.cache
def _phonenumbers() -> Any:
    import phonenumbers

    return phonenumbers

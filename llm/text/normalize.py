# SPDX-License-Identifier: Apache-2.0
"""Normalise text: Unicode form, encoding damage, control characters, whitespace, quotes."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

from llm.errors import unknown
from llm.text import emoji

FORMS: dict[str, Callable[[str], str]] = {
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFKC": lambda text: unicodedata.normalize("NFKC", text),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "NFKD": lambda text: unicodedata.normalize("NFKD", text),
}
QUOTES = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "‟": '"', "«": '"',
     "»": '"', "′": "'", "″": '"'}
)  # fmt: skip
# C0 and C1 controls except tab and newline; zero-width and BOM; bidirectional overrides.
# Zero-width joiners stay: Indic scripts, Persian and emoji need them.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u00ad\u202a-\u202e\u2066-\u2069"
    "\ufff9-\ufffb\ufffe\uffff]"
)
NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
SURROGATES = re.compile("[\ud800-\udfff]")
# First characters of UTF-8 sequences that were read as Latin-1 or Windows-1252.
DAMAGE = re.compile(
    "[\u00c2\u00c3\u00ce\u00cf\u00d0\u00d1\u00e2\u00f0][\u0080-\u00bf\u0152-\u2122]"
)


class Options(NamedTuple):
    """Say what `normalize` does.

    form: Unicode normal form, or "" to leave it. quotes: curly quotes become straight ones.
    mojibake: undo UTF-8 that was read as Latin-1 or Windows-1252. max_newlines: longest run of
    line breaks. lower: lower-case. unwrap: join lines inside a paragraph. emoji: write
    them as names.
    """

    form: str = "NFC"
    quotes: bool = False
    mojibake: bool = True
    max_newlines: int = 3
    lower: bool = False
    unwrap: bool = False
    emoji: bool = False


DEFAULT = Options()


def options(**fields: Any) -> Options:
    """Check and build `Options`.

    Raises:
        ConfigError: a field or the Unicode form is not known.
    """
    for name in fields:
        if name not in Options._fields:
            raise unknown("normalisation option", name, Options._fields)
    built = Options(**fields)
    if built.form and built.form not in FORMS:
        raise unknown("Unicode form", built.form, FORMS)
    return built


def normalize(text: str, how: Options = DEFAULT) -> str:
    """Return the text in normal form; every step takes time linear in its length."""
    plain = text.isascii()
    if not plain:
        text = SURROGATES.sub("\ufffd", text)
        if how.mojibake and DAMAGE.search(text):
            text = repair_mojibake(text)
    text = NEWLINES.sub("\n", text)
    text = CONTROLS.sub("", text)
    if not plain:
        text = SPACES.sub(" ", text)
        if how.quotes:
            text = text.translate(QUOTES)
        if how.emoji:
            text = emoji.name(text)
    if how.lower:
        text = text.lower()
    if not text.isascii() and how.form:
        text = FORMS[how.form](text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    text = text.strip("\n").rstrip()
    if how.unwrap:
        text = re.sub(r"(?<=\S)\n(?=\S)", " ", text)
    if how.max_newlines:
        text = re.sub(f"\n{{{how.max_newlines + 1},}}", "\n" * how.max_newlines, text)
    return text


def repair_mojibake(text: str) -> str:
    """Undo UTF-8 bytes that were decoded as Windows-1252 or Latin-1, line by line.

    A line changes only when all of it decodes strictly as UTF-8, which real accented text
    practically never does.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        while DAMAGE.search(line):  # text is sometimes damaged twice; each round shortens it
            repaired = _undo(line)
            if repaired is None:
                break
            line = repaired
        lines[number] = line
    return "\n".join(lines)


def _undo(line: str) -> str | None:
    try:
        return b"".join(_ONE_BYTE[char] for char in line).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


def _one_byte_table() -> dict[str, bytes]:
    """Map characters to the byte they stood for: Latin-1, overlaid with Windows-1252."""
    table = {chr(value): bytes([value]) for value in range(256)}
    for value in range(0x80, 0xA0):
        char = bytes([value]).decode("cp1252", errors="ignore")
        if char:
            table[char] = bytes([value])
    return table


_ONE_BYTE = _one_byte_table()

# SPDX-License-Identifier: Apache-2.0
"""Decode the bytes of web pages as browsers do: marks, declarations, then the bytes themselves."""

import codecs
import importlib.util
import re

MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
DECLARED = re.compile(
    rb"<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s{0,9}=\s{0,9}[\"']?\s{0,9}([\w:.-]{1,40})",
    re.IGNORECASE,
)
HEAD = 4096  # bytes in which a declaration counts
# Labels that browsers read as a superset of what they name (WHATWG Encoding, section 4.2).
SUPERSETS = {
    "iso8859-1": "cp1252", "ascii": "cp1252", "latin-1": "cp1252", "iso8859-9": "cp1254",
    "iso8859-11": "cp874", "tis-620": "cp874", "gb2312": "gb18030", "gbk": "gb18030",
    "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
    "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8", "utf-32": "utf-8",
}  # fmt: skip
DAMAGED = 0.02  # share of bytes that may fail before a declaration is not believed


def decode(page: bytes, charset: str = "") -> str:
    """Decode a page: byte-order mark, valid UTF-8, declarations, then a guess.

    UTF-8 is tried before the declaration: text that happens to be valid UTF-8 with non-ASCII
    characters practically always is. What cannot be decoded becomes U+FFFD.

    Args:
        page: bytes of a page.
        charset: what the transfer declared (HTTP's Content-Type), if anything.
    """
    for mark, encoding in MARKS.items():
        if page.startswith(mark):
            return page[len(mark) :].decode(encoding, errors="replace")
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError:
        pass
    for declared in filter(None, (_codec(charset), _declared(page))):
        text = page.decode(declared, errors="replace")
        if text.count("\ufffd") <= DAMAGED * len(text):
            return text
    return page.decode(_guess(page), errors="replace")


def _declared(page: bytes) -> str:
    found = DECLARED.search(page[:HEAD])
    return _codec(found.group(1).decode("ascii", errors="replace")) if found else ""


def _codec(label: str) -> str:
    """Return the text codec a label stands for, or "" where Python has none."""
    try:
        name = codecs.lookup(label).name
        "".encode(name)  # refuses codecs that do not make text
    except (LookupError, TypeError):
        return ""
    return SUPERSETS.get(name, name)


def _guess(page: bytes) -> str:
    if importlib.util.find_spec("resiliparse"):
        from resiliparse.parse.encoding import detect_encoding

        guessed = _codec(str(detect_encoding(page)))
        if guessed:
            return guessed
    # Few stray bytes in UTF-8 are damage; many mean a one-byte encoding.
    broken = page.decode("utf-8", errors="replace").count("\ufffd")
    return "utf-8" if broken <= DAMAGED * len(page) else "cp1252"

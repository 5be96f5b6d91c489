# SPDX-License-Identifier: Apache-2.0
"""Keep secrets out of everything that is written: dumps, logs, reports, cards, tracebacks.

A secret is known by its form (`hf_…`, `sk-…`, a private key, a password in a URL), by the name it
stands behind (`api_key=…`, `"password": "…"`, `--config.x.token …`), or as the value of an
environment variable with such a name. Every pattern takes time linear in the text.
"""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

# Names of secrets. `eos_token`, `max_tokens`, `tokenizer` are none.
_NAMES = (
    r"(?:api|access|private|secret|encryption|signing|account)[_-]?keys?|"
    r"(?:auth|access|api|hf|hub|hugging_?face|bearer|secret|session|refresh|github|gitlab|wandb)"
    r"[_-]?tokens?|"
    r"(?:client_?)?secrets?|passwords?|passwd|passphrases?|credentials?"
)
_NAME = re.compile(rf"(?:^|[\W_])(?:{_NAMES})$|^token$|^authorization$", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$")
_SHORTEST = 8  # characters: shorter values of variables would hide ordinary words

_FORMS = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?|"
    r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|github_pat_\w{8,}|"
    r"glpat-[\w-]{8,}|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|ya29\.[\w-]+|"
    r"(?<![\w-])eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|"
    r"(?<=://)[^/\s:@]{1,300}:[^/\s@]{1,300}(?=@)|(?<=Bearer )[\w.~+/=-]{8,}"
)
_VALUE = r"""(?:"[^"\n]*"?|'[^'\n]*'?|[^\s"'&,;)}\]]+)"""
_NAMED = re.compile(
    rf"""((?<![^\W_])(?:{_NAMES})["']?\s{{0,3}}[:=]\s{{0,3}})({_VALUE})|"""
    rf"""((?<!\S)--[\w.]{{0,200}}?(?:{_NAMES}|(?<=[.-])token)[= ])({_VALUE})|"""
    rf"""(\b(?-i:[A-Z][A-Z0-9_]{{0,60}}_(?:TOKEN|KEY))=)({_VALUE})|"""
    rf"""((?<![^\W_])authorization["']?\s{{0,3}}[:=]\s{{0,3}})("[^"\n]*"?|'[^'\n]*'?|[^\n]+)|"""
    r"""((?<![^\W_])token["']?\s{0,3}[:=]\s{0,3}["']?)([\w.~+/=-]{16,})""",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return the text with what looks like a secret replaced by `HIDDEN`."""
    for value in _environment_values():
        text = text.replace(value, HIDDEN)
    return _NAMED.sub(_hide_value, _FORMS.sub(HIDDEN, text))


def redact_tree(value: Any, key: str = "") -> Any:
    """Return nested dicts and lists with secrets hidden, by name and by form.

    Args:
        value: what JSON can hold; tuples become lists, other objects are kept.
        key: the name the value stands behind.
    """
    if isinstance(value, Mapping):
        return {name: redact_tree(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(item, key) for item in value]
    if isinstance(value, str | bytes) and value and is_secret_name(key):
        return HIDDEN
    return redact(value) if isinstance(value, str) else value


class Redacting(logging.Formatter):
    """Format log records, their tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line that is written."""
        return redact(super().format(record))


def is_secret_name(name: str) -> bool:
    """Tell whether a setting of this (dotted) name holds a secret."""
    return bool(_NAME.search(name.rsplit(".", 1)[-1]))


def _hide_value(match: re.Match[str]) -> str:
    """Replace the value of the one alternative that matched; its quotes stay."""
    groups = [group for group in match.groups() if group is not None]
    name, value = groups
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{quote}{HIDDEN}{quote}"


def _environment_values() -> list[str]:
    """Return the secrets that the environment holds, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _VARIABLE.search(name.upper())
    }
    return sorted(found, key=len, reverse=True)

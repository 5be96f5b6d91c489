# SPDX-License-Identifier: Apache-2.0
"""The visible table of filters, their named presets, and how a config chooses among them.

To add a filter: write a batch function (documents -> kept document | Drop) and name it here.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llm import files
from llm.corpus import c4, decontaminate, fineweb, gopher, learned, origin, words
from llm.corpus.documents import BatchFunction, Document, Drop
from llm.errors import DataError, unknown

FILTERS: dict[str, Callable[..., Any]] = {
    "length": fineweb.length,
    "url": origin.url,
    "language": origin.language,
    "licence": origin.licence,
    "bad_words": words.bad_words,
    "decontaminate": decontaminate.decontaminate,
    "gopher_repetition": gopher.repetition,
    "gopher_quality": gopher.quality,
    "c4_tfds": c4.c4,
    "c4_paper": c4.c4,
    "fineweb": fineweb.fineweb,
    "perplexity": learned.perplexity,
    "quality_model": learned.quality_model,
    "noted": learned.noted,
}
# What a named filter sets differently from its function's defaults.
VARIANTS: dict[str, dict[str, Any]] = {
    "c4_paper": {
        "end_marks": c4.END_MARKS_PAPER,
        "min_words_per_line": 3,
        "min_sentences": 5,
    },
}

# Constants as published: the functions' own defaults, C4 without its end-mark rule as in FineWeb.
WEB: dict[str, Any] = {
    "names": ("gopher_repetition", "gopher_quality", "c4_paper", "fineweb"),
    "c4_paper": {"require_end_mark": False},
}

# Documentation is short, lists parameters line by line, quotes code, and repeats section rules
# and names. Word, stop-word and letter bounds fall to what a one-line docstring with a signature
# has; words are longer because dotted names count as one; the repetition limits are looser, and
# the n-gram rules judge only documents of 200 words or more. FineWeb's rules on line ends and
# short lines are off: most one-line docstrings have no full stop. C4's rules are left out: they
# drop pages with "{" and lines without a full stop, which is what code examples are.
DOCUMENTATION: dict[str, Any] = {
    "names": ("length", "gopher_repetition", "gopher_quality", "fineweb"),
    "length": {"min_chars": 40, "max_chars": 200_000, "min_words": 8},
    "gopher_repetition": {
        "max_duplicate_lines": 0.5,
        "max_duplicate_paragraphs": 0.5,
        "max_duplicate_line_chars": 0.4,
        "max_duplicate_paragraph_chars": 0.4,
        "top_n_grams": ((2, 0.30), (3, 0.27), (4, 0.24)),
        "duplicate_n_grams": ((5, 0.45), (6, 0.42), (7, 0.39), (8, 0.36), (9, 0.33), (10, 0.30)),
        "min_words": 200,
    },
    "gopher_quality": {
        "min_words": 6,
        "max_mean_length": 20.0,
        "max_ellipses": 0.15,
        "min_letter_words": 0.3,
        "min_stop_words": 0,
    },
    "fineweb": {
        "min_terminal_lines": 0.0,
        "max_short_lines": 1.0,
        "max_duplicate_line_chars": 0.5,
        "max_newlines_per_word": 0.8,
    },
}


def section(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preset with every option of every filter, so that a command line can set each."""
    options = {
        name: {
            key: given.default
            for key, given in list(inspect.signature(function).parameters.items())[1:]
        }
        for name, function in FILTERS.items()
    }
    changed = ({**options[n], **VARIANTS.get(n, {}), **preset.get(n, {})} for n in FILTERS)
    return {"names": preset["names"], **dict(zip(FILTERS, changed, strict=True))}


def build(names: Iterable[str], **sections: Mapping[str, Any]) -> list[tuple[str, BatchFunction]]:
    """Bind the named filters, in order, to their options.

    Args:
        names: keys of `FILTERS`.
        sections: options per filter name; what is not given keeps the published constant.

    Raises:
        ConfigError: a filter or an option is not known.
    """
    names = list(names)
    for name in [*names, *sections]:
        if name not in FILTERS:
            raise unknown("filter", name, FILTERS)
    chain: list[tuple[str, BatchFunction]] = []
    for name in names:
        options = {**VARIANTS.get(name, {}), **sections.get(name, {})}
        known = list(inspect.signature(FILTERS[name]).parameters)[1:]
        for key in options:
            if key not in known:
                raise unknown(f"option of filter {name}", key, known)
        chain.append((name, functools.partial(FILTERS[name], **options)))
    return chain


def hashes(names: Iterable[str], **sections: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of every file that the named filters read, for fingerprints.

    Raises:
        DataError: a file is missing.
    """
    found: dict[str, str] = {}
    for name in names:
        for key, value in sections.get(name, {}).items():
            if not value or not (key == "model" or key.endswith(("_file", "_files"))):
                continue
            listed = {key: value}
            if not isinstance(value, str):
                listed = {f"{key}.{number}": file for number, file in enumerate(value)}
            for place, file in listed.items():
                if not files.path(file).exists():
                    raise DataError(
                        f"The filter {name} needs {file}, which does not exist.",
                        f"Set --config.filters.{name}.{key}.",
                    )
                found[f"{name}.{place}"] = files.hash_file(file)
    return found


def apply(
    function: BatchFunction, batch: list[Document]
) -> tuple[list[Document], list[tuple[Document, Drop]]]:
    """Run one batch function and part its results into kept documents and drops."""
    kept: list[Document] = []
    dropped: list[tuple[Document, Drop]] = []
    for document, outcome in zip(batch, function(batch), strict=True):
        if isinstance(outcome, Drop):
            dropped.append((document, outcome))
        else:
            kept.append(outcome)
    return kept, dropped

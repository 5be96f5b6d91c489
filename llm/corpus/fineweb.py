# SPDX-License-Identifier: Apache-2.0
"""FineWeb's quality rules (Penedo et al. 2024) and a plain length rule."""

from llm.corpus.documents import Document, Drop, Outcome, judge
from llm.corpus.gopher import seen_before
from llm.text.views import views

TERMINAL_MARKS = tuple(".!?\"'…‽؟۔।॥。！？．”’»՞܂።፧፨᙮᠃᠉‼⁇⁈⁉")


def fineweb(
    batch: list[Document],
    *,
    min_terminal_lines: float = 0.12,
    max_short_lines: float = 0.67,
    short_line: int = 30,
    max_duplicate_line_chars: float = 0.01,
    max_newlines_per_word: float = 0.3,
) -> list[Outcome]:
    """Keep documents whose lines are long, distinct and end like sentences.

    Args:
        batch: documents.
        min_terminal_lines: share of lines that end with terminal punctuation.
        max_short_lines, short_line: share of lines with at most `short_line` characters.
        max_duplicate_line_chars: share of characters in lines seen before.
        max_newlines_per_word: line breaks per word; lists have many.
    """
    results: list[Outcome] = []
    for document, view in zip(batch, views(batch), strict=True):
        lines = [line for line in view.lines if line.strip()]
        if not lines:
            results.append(Drop("fineweb_empty", 0, 1))
            continue
        ending = sum(line.endswith(TERMINAL_MARKS) for line in lines) / len(lines)
        short = sum(len(line) <= short_line for line in lines) / len(lines)
        breaks = len(view.lines) - 1
        duplicated = seen_before(lines)[1] / max(len(view.text) - breaks, 1)
        listed = breaks / max(len(view.words), 1)
        checks = (
            ("fineweb_terminal_lines", ending, min_terminal_lines, 1),
            ("fineweb_short_lines", short, max_short_lines, -1),
            ("fineweb_duplicate_chars", duplicated, max_duplicate_line_chars, -1),
            ("fineweb_list", listed, max_newlines_per_word, -1),
        )
        results.append(judge(document, checks))
    return results


def length(
    batch: list[Document], *, min_chars: int = 1, max_chars: int = 1_000_000, min_words: int = 1
) -> list[Outcome]:
    """Keep documents within bounds of characters and words."""
    results: list[Outcome] = []
    for document, view in zip(batch, views(batch), strict=True):
        size = len(view.text)
        checks = (
            ("length_too_few_chars", size, min_chars, 1),
            ("length_too_many_chars", size, max_chars, -1),
            ("length_too_few_words", len(view.words), min_words, 1),
        )
        results.append(judge(document, checks))
    return results

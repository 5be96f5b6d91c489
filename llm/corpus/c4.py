# SPDX-License-Identifier: Apache-2.0
"""C4's page and line rules (Raffel et al. 2020), as published and as TFDS codes them."""

import re
from typing import NamedTuple

from llm.corpus.documents import Document, Drop, Outcome, judge
from llm.text.views import SENTENCE_END

END_MARKS = (".", "?", "!", '"')
END_MARKS_PAPER = (*END_MARKS, "'")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def c4(
    batch: list[Document],
    *,
    end_marks: tuple[str, ...] = END_MARKS,
    require_end_mark: bool = True,
    min_words_per_line: int = 5,
    min_sentences: int = 3,
    max_word_length: int = 1000,
    max_chars: int = 190_000,
    no_braces: bool = True,
    no_lorem_ipsum: bool = True,
    no_javascript: bool = True,
    no_policies: bool = True,
) -> list[Outcome]:
    """Keep the lines that look like sentences, and the pages that have enough of them.

    Args:
        batch: documents; the text of kept ones loses the lines that are dropped.
        end_marks, require_end_mark: a line must end with one of these, and not with "...".
        min_words_per_line, max_word_length: bounds of a line and its words.
        min_sentences: sentences that a page needs in its kept lines.
        max_chars: longest page (0: any).
        no_braces, no_lorem_ipsum: drop pages that hold "{" or "lorem ipsum".
        no_javascript, no_policies: drop lines that speak of JavaScript or of cookie policies.
    """
    rules = _Rules(
        tuple(end_marks),
        require_end_mark,
        min_words_per_line,
        max_word_length,
        no_braces,
        no_lorem_ipsum,
        no_javascript,
        no_policies,
    )
    results: list[Outcome] = []
    for document in batch:
        text = document["text"]
        if max_chars and len(text) > max_chars:
            results.append(Drop("c4_too_long", len(text), max_chars))
            continue
        kept = _kept_lines(text, rules)
        if isinstance(kept, Drop):
            results.append(kept)
            continue
        sentences = sum(map(count_sentences, kept))
        checks = [("c4_too_few_sentences", sentences, min_sentences, 1)]
        results.append(judge(document, checks, {**document, "text": "\n".join(kept).strip()}))
    return results


class _Rules(NamedTuple):
    end_marks: tuple[str, ...]
    require_end_mark: bool
    min_words: int
    max_word_length: int
    no_braces: bool
    no_lorem_ipsum: bool
    no_javascript: bool
    no_policies: bool


def _kept_lines(text: str, rules: _Rules) -> list[str] | Drop:
    """Return the lines that stay, or why the whole page goes."""
    kept: list[str] = []
    for line in text.split("\n"):
        line = line.strip()
        if "[" in line:
            line = CITATION.sub("", line)
        if rules.require_end_mark and (not line.endswith(rules.end_marks) or line.endswith("...")):
            continue
        words = line.split()
        if len(words) < rules.min_words:
            continue
        if len(line) > rules.max_word_length and max(map(len, words)) > rules.max_word_length:
            continue
        lower = line.lower()
        if rules.no_lorem_ipsum and "lorem ipsum" in lower:
            return Drop("c4_lorem_ipsum", 1, 0)
        if rules.no_javascript and "javascript" in lower:
            continue
        if rules.no_braces and "{" in line:
            return Drop("c4_brace", 1, 0)
        if rules.no_policies and any(phrase in lower for phrase in POLICY):
            continue
        kept.append(line)
    return kept


def count_sentences(text: str) -> int:
    """Count sentences: end marks before a blank or the end, plus an unfinished rest."""
    ends = [m.end() for m in SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(rest.strip())

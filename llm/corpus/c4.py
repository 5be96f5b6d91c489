# SPDX-License-Identifier: Apache-2.0
"""C4's page and line rules (Raffel et al. 2020), as published and as TFDS codes them."""

import re

from llm.corpus.documents import Document, Drop, Outcome
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
    results: list[Outcome] = []
    for document in batch:
        text = document["text"]
        if max_chars and len(text) > max_chars:
            results.append(Drop("c4_too_long", len(text), max_chars))
            continue
        kept: list[str] = []
        sentences = 0
        outcome: Outcome | None = None
        for line in text.split("\n"):
            line = line.strip()
            if "[" in line:
                line = CITATION.sub("", line)
            if require_end_mark and (not line.endswith(end_marks) or line.endswith("...")):
                continue
            words = line.split()
            if len(words) < min_words_per_line:
                continue
            if len(line) > max_word_length and max(map(len, words)) > max_word_length:
                continue
            lower = line.lower()
            if no_lorem_ipsum and "lorem ipsum" in lower:
                outcome = Drop("c4_lorem_ipsum", 1, 0)
                break
            if no_javascript and "javascript" in lower:
                continue
            if no_braces and "{" in line:
                outcome = Drop("c4_brace", 1, 0)
                break
            if no_policies and any(phrase in lower for phrase in POLICY):
                continue
            sentences += count_sentences(line)
            kept.append(line)
        if outcome is None and sentences < min_sentences:
            outcome = Drop("c4_too_few_sentences", sentences, min_sentences)
        results.append(outcome or {**document, "text": "\n".join(kept).strip()})
    return results


def count_sentences(text: str) -> int:
    """Count sentences: end marks before a blank or the end, plus an unfinished rest."""
    ends = [m.end() for m in SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(rest.strip())

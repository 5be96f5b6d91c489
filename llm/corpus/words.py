# SPDX-License-Identifier: Apache-2.0
"""Drop documents by the words they hold: a user's list, and a few words of our own."""

import functools
import re

from llm.corpus.documents import Document, Outcome, judge
from llm.corpus.origin import read_list
from llm.text.views import views

# Enough to mark the coarsest pages; a list for one's purpose belongs into words_file.
COARSE = frozenset(("porn", "porno", "xxx", "hentai", "milf", "blowjob", "cumshot", "gangbang",
                    "fuck", "fucking", "motherfucker", "cunt", "asshole"))  # fmt: skip


def bad_words(
    batch: list[Document],
    *,
    words: tuple[str, ...] = (),
    words_file: str = "",
    built_in: bool = True,
    max_count: int = 0,
    max_share: float = 0.0,
) -> list[Outcome]:
    """Drop documents that hold listed words or phrases more often than allowed.

    Args:
        batch: documents.
        words, words_file: words and phrases, without regard to case; the file has one per line.
        built_in: use our own short list as well.
        max_count: occurrences that are forgiven.
        max_share: occurrences per word of the document that are forgiven.
    """
    single, phrases = _listed(tuple(words), words_file, built_in)
    results: list[Outcome] = []
    for document, view in zip(batch, views(batch), strict=True):
        lower = [word.lower() for word in view.words]
        count = sum(word in single for word in lower)
        if phrases is not None:
            count += len(phrases.findall(document["text"].lower()))
        limit = max(max_count, max_share * len(lower))
        results.append(judge(document, [("bad_words", count, limit, -1)]))
    return results


@functools.lru_cache(maxsize=8)
def _listed(
    words: tuple[str, ...], file: str, built_in: bool
) -> tuple[frozenset[str], re.Pattern[str] | None]:
    """Part the lists into single words and one pattern of phrases."""
    entries = {entry.lower() for entry in (*words, *read_list(file))} | (
        COARSE if built_in else frozenset()
    )
    single = frozenset(entry for entry in entries if re.fullmatch(r"\w+", entry))
    rest = sorted(entries - single, key=lambda entry: (-len(entry), entry))
    if not rest:
        return single, None
    joined = "|".join(re.escape(entry) for entry in rest)
    return single, re.compile(rf"(?<!\w)(?:{joined})(?!\w)")

# SPDX-License-Identifier: Apache-2.0
"""Plant known defects in a corpus, so that a run can measure what its cleaning finds.

Planted documents are marked with meta["injected"] and never reach the output.
"""

import hashlib
import random
from typing import Any

from llm.corpus import units
from llm.corpus.documents import Document
from llm.errors import ConfigError, unknown

KINDS = ("exact", "near", "span", "email", "mojibake")
EDIT_RATES = (0.005, 0.01, 0.03, 0.10)  # share of words replaced in near copies
SPAN = (60, 120)  # words copied verbatim into other text
# A near copy of a shorter text cannot have a Jaccard similarity of 0.85.
MIN_WORDS = {"near": 60, "span": 2 * SPAN[1]}
FIRST = ("ada", "j.lovelace", "grace-h", "alan_t", "k.goedel", "emmy+news", "x", "d'arcy", "ops1")
HOSTS = (
    "example.com", "mail.example.org", "example.co.uk", "sub-domain.example.net", "example.de",
    "a.b.c.example.edu", "example.museum", "xn--bcher-kva.example",
)  # fmt: skip
WRAPS = ("{}", "<{}>", "({})", "mailto:{}", "{}.", "{},", "[{}]", "“{}”", "contact={};", "**{}**")
DECOYS = (
    "@property", "user@localhost", "a@b.shape", "x @ y.T", "numpy@1.26.4", "@example.com",
    "foo@", "git@{host}:repo", "A@B", "plt.plot(x@w.T)", "name@@host.org@",
)  # fmt: skip


def check(kinds: tuple[str, ...], rate: float) -> None:
    """Raise ConfigError for a kind that does not exist or a rate outside [0, 1]."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("injected kind", kind, KINDS)
    if not 0 <= rate <= 1:
        raise ConfigError(f"inject.rate is {rate}.", "Choose a share between 0 and 1.")


def plant(document: Document, *, seed: int, rate: float, kinds: tuple[str, ...]) -> list[Document]:
    """Return the planted documents made from one document; most documents give none.

    What is made depends only on the seed, the kind and the document's id, not on order or workers.

    Args:
        document: what the planted ones resemble.
        seed: of the choices.
        rate: share of documents of which each kind makes one, where they are long enough.
        kinds: some of `KINDS`.
    """
    made = []
    words = len(document["text"].split())
    for kind in kinds:
        digest = hashlib.blake2b(f"{seed}:{kind}:{document['id']}".encode(), digest_size=8).digest()
        generator = random.Random(int.from_bytes(digest, "little"))
        if generator.random() < rate and words >= MIN_WORDS.get(kind, 0):
            made.append(_make(kind, document, generator))
    return made


def _make(kind: str, document: Document, generator: random.Random) -> Document:
    words = document["text"].split(" ")
    made: dict[str, Any] = {
        **document,
        "id": f"injected:{kind}:{document['id']}",
        "meta": {**document["meta"]},
    }
    truth: dict[str, Any] = {"kind": kind, "of": document["id"]}
    if kind == "near":
        rate_of_edits = generator.choice(EDIT_RATES)
        made["text"] = " ".join(_edit(words, rate_of_edits, generator))
        truth["edits"] = rate_of_edits
    elif kind == "span":
        made["text"], truth["span"] = _with_span(document["text"].split(), generator)
    elif kind == "email":
        made["text"], truth["emails"], truth["decoys"] = _with_emails(words, generator)
    elif kind == "mojibake":
        line = "Café “naïve” – São Paulo, œuvre, Zürich…"
        made["text"] = f"{document['text']}\n{line.encode('utf-8').decode('latin-1')}"
        truth["line"] = line
    made["meta"]["injected"] = truth
    return made


def _edit(words: list[str], rate: float, generator: random.Random) -> list[str]:
    """Replace a share of the words, at least one, by words of the same document."""
    edited = list(words)
    places = [i for i, word in enumerate(words) if any(c.isalnum() for c in word)]
    for place in generator.sample(places, max(1, round(rate * len(places)))):
        edited[place] = f"{words[generator.choice(places)].strip()}x"
    return edited


def _with_span(words: list[str], generator: random.Random) -> tuple[str, list[int]]:
    """Set a span of words, as it stands, among all the words in another order.

    Returns:
        the text, and which of its words (`llm.corpus.units`) the span is: first, one past the last.
    """
    length = generator.randint(*SPAN)
    start = generator.randrange(len(words) - length)
    others = generator.sample(words, len(words))
    place = generator.randrange(len(others))
    before, span = " ".join(others[:place]), " ".join(words[start : start + length])
    first = len(units.WORD.findall(before))
    text = f"{before} {span} {' '.join(others[place:])}".strip()
    return text, [first, first + len(units.WORD.findall(span))]


def _with_emails(words: list[str], generator: random.Random) -> tuple[str, list[str], list[str]]:
    emails, decoys = [], []
    result = list(words)
    for _ in range(3):
        address = f"{generator.choice(FIRST)}{generator.randrange(100)}@{generator.choice(HOSTS)}"
        emails.append(address)
        result.insert(
            generator.randrange(len(result) + 1),
            f" {generator.choice(WRAPS).format(address)} ",
        )
        decoy = generator.choice(DECOYS)
        decoys.append(decoy)
        result.insert(generator.randrange(len(result) + 1), f" {decoy} ")
    return " ".join(result), emails, decoys

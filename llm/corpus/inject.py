# SPDX-License-Identifier: Apache-2.0
"""Plant known defects in a corpus, so that a run can measure what its cleaning finds.

Planted documents are marked with meta["injected"] and never reach the output.
"""

import hashlib
import random
from typing import Any

from llm.corpus.documents import Document
from llm.errors import ConfigError, unknown

KINDS = ("exact", "near", "email", "mojibake")
EDIT_RATES = (0.005, 0.01, 0.03, 0.10)  # share of words replaced in near copies
MIN_WORDS = 60  # a near copy of a shorter text cannot have a Jaccard similarity of 0.85
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

    What is made depends only on the seed and the document's id, not on order or workers.
    """
    digest = hashlib.blake2b(f"{seed}:{document['id']}".encode(), digest_size=8).digest()
    generator = random.Random(int.from_bytes(digest, "little"))
    if not kinds or generator.random() >= rate:
        return []
    kind = kinds[generator.randrange(len(kinds))]
    words = document["text"].split(" ")
    if kind == "near" and len(document["text"].split()) < MIN_WORDS:
        return []
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
    elif kind == "email":
        made["text"], truth["emails"], truth["decoys"] = _with_emails(words, generator)
    elif kind == "mojibake":
        line = "Café “naïve” – São Paulo, œuvre, Zürich…"
        made["text"] = f"{document['text']}\n{line.encode('utf-8').decode('latin-1')}"
        truth["line"] = line
    made["meta"]["injected"] = truth
    return [made]


def _edit(words: list[str], rate: float, generator: random.Random) -> list[str]:
    """Replace a share of the words, at least one, by words of the same document."""
    edited = list(words)
    places = [i for i, word in enumerate(words) if any(c.isalnum() for c in word)]
    for place in generator.sample(places, max(1, round(rate * len(places)))):
        edited[place] = f"{words[generator.choice(places)].strip()}x"
    return edited


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

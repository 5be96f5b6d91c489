# SPDX-License-Identifier: Apache-2.0
"""Rules on languages, addresses, licences and words."""

import pytest

from llm.corpus import filters, origin
from llm.corpus.documents import Drop
from llm.errors import ConfigError, DataError

ENGLISH = "The old harbour is quiet in the morning, and only the gulls are awake before the boats."
GERMAN = "Der alte Hafen ist am Morgen still, und nur die Möwen sind vor den Booten wach geworden."


def judge(name, documents, **options):
    ((_, function),) = filters.build((name,), **{name: options})
    made = [{"id": str(i), "source": "t", "meta": {}, "text": ENGLISH, **d}
            for i, d in enumerate(documents)]  # fmt: skip
    return [o.reason if isinstance(o, Drop) else o for o in function(made)]


def test_languages():
    kept, other, none = judge("language", [{}, {"text": GERMAN}, {"text": "12 34"}])
    assert kept["meta"]["language"] == "en" and kept["meta"]["language_score"] > 0.8
    assert (other, none) == ("language_de", "language_none")
    noted = judge("language", [{"text": GERMAN}], languages=())[0]
    assert noted["meta"]["language"] == "de"
    assert judge("language", [{}], min_score=1.1) == ["language_unsure"]


ADDRESSES = [
    "https://news.example.com/a",
    "http://EXAMPLE.org/",
    "https://badexample.com/",
    "https://good.net/forum/topic/1",
    "https://good.net/forums",
    "https://sub.bad.co.uk:8080/x?y=z",
    "http://[broken",
    "",
    "https://good.net/free-casino-bonus",
    "https://good.net/casinos-history",
]


def kept(**options):
    outcomes = judge("url", [{"url": a} if a else {} for a in ADDRESSES], **options)
    return [a for a, o in zip(ADDRESSES, outcomes, strict=True) if not isinstance(o, str)]


def test_block_lists(tmp_path):
    gone = {"https://news.example.com/a", "http://EXAMPLE.org/", "https://good.net/forum/topic/1",
            "https://sub.bad.co.uk:8080/x?y=z", "https://good.net/free-casino-bonus"}  # fmt: skip
    block = ("example.com", "https://www.example.org", "good.net/forum", "bad.co.uk")
    assert set(ADDRESSES) - set(kept(block=block)) == gone
    (tmp_path / "list.txt").write_text("# mine\n" + "\n".join(block) + "  # last\n\n")
    assert kept(block_file=str(tmp_path / "list.txt")) == kept(block=block)
    assert len(kept(block_words=())) == len(ADDRESSES)


def test_allow_lists():
    assert kept(allow=("example.com", "good.net"), block_words=()) == [
        "https://news.example.com/a",
        *(a for a in ADDRESSES if "good.net" in a),
    ]


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        kept(block_file=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="does not exist"):
        filters.hashes(("url",), url={"block_file": str(tmp_path / "none.txt")})


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("Text under https://creativecommons.org/licenses/by-sa/4.0/ here", "CC-BY-SA-4.0"),
        ("see creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("published under CC BY-NC 3.0.", "CC-BY-NC-3.0"),
        ("# SPDX-License-Identifier: Apache-2.0", "Apache-2.0"),
        ("licensed to nobody", ""),
        ("x" * 5000 + " CC0 " + "x" * 5000, ""),
    ],
)
def test_stated_licences(text, tag):
    assert origin.stated_licence(text) == tag


def test_licences():
    documents = [{"licence": "MIT"}, {"text": "CC BY-SA 4.0"}, {"text": "CC BY-NC 4.0"}, {}]
    outcomes = judge("licence", documents, allowed=("MIT", "CC-BY-SA"), unknown="drop")
    assert [o if isinstance(o, str) else o["licence"] for o in outcomes] == [
        "MIT", "CC-BY-SA-4.0", "licence_not_allowed", "licence_unknown",
    ]  # fmt: skip
    assert not any(isinstance(o, str) for o in judge("licence", documents))
    with pytest.raises(ConfigError):
        judge("licence", documents, unknown="ask")


def test_bad_words(tmp_path):
    (tmp_path / "w.txt").write_text("gull\nquiet in the\n")
    documents = [{"text": "A gull."}, {"text": "All QUIET in the west."}, {"text": "gulls, quiet"}]
    file = str(tmp_path / "w.txt")
    outcomes = judge("bad_words", documents, words_file=file)
    assert [isinstance(o, str) for o in outcomes] == [True, True, False]
    assert not isinstance(judge("bad_words", documents, words_file=file, max_count=1)[0], str)
    long = [{"text": "gull " + "word " * 99}]
    assert not isinstance(judge("bad_words", long, words=("gull",), max_share=0.01)[0], str)
    assert judge("bad_words", long, words=("gull",), max_share=0.009) == ["bad_words"]

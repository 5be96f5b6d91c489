# SPDX-License-Identifier: Apache-2.0
"""C4, FineWeb and length rules at their published constants, and the table of filters."""

import time

import pytest

from llm.corpus import c4, filters, fineweb, learned
from llm.corpus.documents import Drop
from llm.errors import ConfigError


def judge(name, text, **options):
    [(_, function)] = filters.build([name], **({name: options} if options else {}))
    return function([{"id": "x", "text": text, "meta": {"lm_bits_per_byte": 1.0}}])[0]


def text_of(outcome):
    assert not isinstance(outcome, Drop), outcome
    return outcome["text"]


FIVE = "This line has five words."
FOUR = "This has four words."
PAGE = "\n".join([FIVE] * 5)


def test_c4_words_per_line_and_sentences():
    assert text_of(judge("c4_tfds", f"{PAGE}\n{FOUR}")) == PAGE
    assert text_of(judge("c4_paper", f"{PAGE}\nTwo words.\n{FOUR}")) == f"{PAGE}\n{FOUR}"
    assert text_of(judge("c4_tfds", "\n".join([FIVE] * 3)))
    assert judge("c4_tfds", "\n".join([FIVE] * 2)) == Drop("c4_too_few_sentences", 2, 3)
    assert judge("c4_paper", "\n".join([FIVE] * 4)) == Drop("c4_too_few_sentences", 4, 5)


@pytest.mark.parametrize("mark", [".", "?", "!", '"'])
def test_c4_end_marks(mark):
    line = f"A line that ends with{mark}"
    assert text_of(judge("c4_tfds", f"{PAGE}\n{line}")).endswith(line)


@pytest.mark.parametrize("line", ["It ends without any mark", "It ends with three dots...",
                                  "It ends with a comma,", "It ends with a quote'"])  # fmt: skip
def test_c4_lines_without_end_mark_go(line):
    assert text_of(judge("c4_tfds", f"{PAGE}\n{line}")) == PAGE
    if not line.endswith("..."):
        kept = judge("c4_tfds", f"{PAGE}\n{line}", require_end_mark=False)
        assert text_of(kept).endswith(line)


def test_c4_paper_takes_a_single_quote():
    line = "It ends with a quote'"
    assert text_of(judge("c4_paper", f"{PAGE}\n{line}")).endswith(line)


def test_c4_pages_and_lines_that_betray_code_and_notices():
    for bad, reason in (
        ("Here is lorem ipsum again for you.", "c4_lorem_ipsum"),
        ("A brace { is in this line.", "c4_brace"),
    ):
        assert judge("c4_tfds", f"{PAGE}\n{bad}").reason == reason
    for phrase in ("JavaScript", *c4.POLICY):
        assert (
            text_of(judge("c4_tfds", f"{PAGE}\nPlease read our {phrase} before going on.")) == PAGE
        )
    long = "x" * 1000
    assert long in text_of(judge("c4_tfds", f"{PAGE}\nOne very long word {long}."[:-1] + " end."))
    assert text_of(judge("c4_tfds", f"{PAGE}\nOne very long word {long}x end.")) == PAGE


def test_c4_citations_and_length():
    cited = "A fact[1] stands here[citation needed] and there[edit]."
    assert text_of(judge("c4_tfds", f"{PAGE}\n{cited}")).endswith("A fact stands here and there.")
    page = (FIVE + "\n") * 7307
    assert not isinstance(judge("c4_tfds", page[:189_982] + "\nA few more words."), Drop)
    assert judge("c4_tfds", "x" * 190_001) == Drop("c4_too_long", 190_001, 190_000)


def test_sentences():
    for text, count in (
        ("One. Two! Three?", 3),
        ("Unfinished", 1),
        ("One. unfinished", 2),
        ('He said "no." Then left.', 2),
        ("Version 1.2 is out.", 1),
        ("", 0),
    ):
        assert c4.count_sentences(text) == count, text


LONG = "This is one long line that ends with a stop."


@pytest.mark.parametrize(
    ("reason", "inside", "outside"),
    [
        # 12 of 100 lines end in a mark, against 11
        ("fineweb_terminal_lines",
         [f"{LONG} {i}." for i in range(12)] + [f"{LONG} {i} no" for i in range(88)],
         [f"{LONG} {i}." for i in range(11)] + [f"{LONG} {i} no" for i in range(89)]),
        # 67 of 100 lines have at most 30 characters, against 68
        ("fineweb_short_lines",
         [f"a b c d e f g {i:015d}." for i in range(67)] + [f"{LONG} {i}." for i in range(33)],
         [f"a b c d e f g {i:015d}." for i in range(68)] + [f"{LONG} {i}." for i in range(32)]),
    ],
)  # fmt: skip
def test_fineweb_line_shares(reason, inside, outside):
    assert not isinstance(judge("fineweb", "\n".join(inside)), Drop)
    assert judge("fineweb", "\n".join(outside)).reason == reason


def test_fineweb_short_means_thirty_characters():
    for size, dropped in ((30, True), (31, False)):
        text = "\n".join("ab " * 8 + f"{i:0{size - 25}d}." for i in range(9))
        assert isinstance(judge("fineweb", text, max_newlines_per_word=9), Drop) == dropped


@pytest.mark.parametrize(("rest", "dropped"), [(9800, False), (9799, True)])
def test_fineweb_duplicate_characters(rest, dropped):
    line = ("repeat " * 20)[:99] + "."
    words = " ".join(f"w{i}" for i in range(4000))[: rest - 1] + "."
    outcome = judge("fineweb", f"{line}\n{words}\n{line}")
    assert isinstance(outcome, Drop) == dropped
    if dropped:
        assert outcome.reason == "fineweb_duplicate_chars" and outcome.threshold == 0.01


def test_fineweb_newlines_per_word():
    def lines(words):  # each line has `words` words and a mark, which is a word too
        return "\n".join(" ".join(f"wordwordword{i}x{j}" for j in range(words)) + "."
                         for i in range(31))  # fmt: skip

    assert not isinstance(judge("fineweb", lines(3)), Drop)  # 30 / 124
    drop = judge("fineweb", lines(2), short_line=5)  # 30 / 93
    assert drop.reason == "fineweb_list" and drop.threshold == 0.3


def test_length():
    for text, reason in (("ab", "length_too_few_chars"), ("abcdef", "length_too_many_chars"),
                         ("abcd", "length_too_few_words")):  # fmt: skip
        options = {"min_chars": 3, "max_chars": 5, "min_words": 2}
        assert judge("length", text, **options).reason == reason
    assert not isinstance(judge("length", "ab cd", min_chars=3, max_chars=5, min_words=2), Drop)


def test_defaults_are_the_published_constants():
    import inspect

    defaults = {
        name: {k: p.default for k, p in inspect.signature(f).parameters.items() if k != "batch"}
        for name, f in filters.FILTERS.items()
    }
    assert defaults["fineweb"] == {
        "min_terminal_lines": 0.12, "max_short_lines": 0.67, "short_line": 30,
        "max_duplicate_line_chars": 0.01, "max_newlines_per_word": 0.3,
    }  # fmt: skip
    quality = defaults["gopher_quality"]
    assert (quality["min_words"], quality["max_words"]) == (50, 100_000)
    assert (quality["min_mean_length"], quality["max_mean_length"]) == (3, 10)
    assert (quality["max_hashes"], quality["max_ellipses"]) == (0.1, 0.1)
    assert (quality["max_bullet_lines"], quality["max_ellipsis_lines"]) == (0.9, 0.3)
    assert (quality["min_letter_words"], quality["min_stop_words"]) == (0.8, 2)
    c4_defaults = defaults["c4_tfds"]
    assert (c4_defaults["min_words_per_line"], c4_defaults["min_sentences"]) == (5, 3)
    assert (c4_defaults["max_word_length"], c4_defaults["max_chars"]) == (1000, 190_000)
    assert filters.VARIANTS["c4_paper"]["min_words_per_line"] == 3
    assert filters.VARIANTS["c4_paper"]["min_sentences"] == 5


def test_unknown_names_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match="Did you mean 'gopher_quality'"):
        filters.build(["gopher_qualty"])
    with pytest.raises(ConfigError, match="Did you mean 'min_words'"):
        filters.build(["gopher_quality"], gopher_quality={"min_word": 3})
    for preset in (filters.WEB, filters.DOCUMENTATION):
        assert len(filters.build(**preset)) == len(preset["names"])


def test_a_config_holds_every_option_of_every_filter():
    for preset in (filters.WEB, filters.DOCUMENTATION):
        section = filters.section(preset)
        assert set(section) == {"names", *filters.FILTERS}
        plain, whole = filters.build(**preset), filters.build(**section)
        for (name, rule), (same, other) in zip(plain, whole, strict=True):
            options = {**section[name], **rule.keywords}
            assert name == same and options == other.keywords == section[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return options for the filters that need a trained model."""
    folder = tmp_path_factory.mktemp("models")
    words = ["the harbour was quiet", "boats came home"]
    learned.save(learned.train_classifier(words, ["buy now"]), folder / "quality_model.npz")
    learned.save(learned.train_perplexity(words), folder / "perplexity.npz")
    (folder / "eval.jsonl").write_text('{"text": "a question of eight or more words in a row"}')
    return {
        "decontaminate": {"eval_file": str(folder / "eval.jsonl")},
        **{f.stem: {"model": str(f)} for f in folder.glob("*.npz")},
    }


@pytest.mark.parametrize("unit", ["a", "a ", ".", "a.", "-", "\n", "# ", "'a", "[", "x\n\n", "{"])
@pytest.mark.parametrize("name", list(filters.FILTERS))
def test_hostile_text_is_linear(name, unit, models):
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    judge(name, text, **models.get(name, {}))
    assert time.process_time() - start < 2


def test_fineweb_marks():
    assert fineweb.TERMINAL_MARKS[:5] == (".", "!", "?", '"', "'")

# SPDX-License-Identifier: Apache-2.0
"""Terms beside each other against a plain count, exchanged genders, balanced documents."""

import importlib
import io
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from llm.corpus import bias, stage
from llm.errors import ConfigError
from llm.text import records, terms
from llm.text.views import View, Vocabulary


def views(texts):
    vocabulary = Vocabulary()
    return [View(text, vocabulary) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He gave his sister her book.", "She gave her brother his book."),
        ("I saw her in the garden; HER dog too.", "I saw him in the garden; HIS dog too."),
        ("The book is his. He likes him.", "The book is hers. She likes her."),
        ("Mr. Smith's wife was a queen and mother of boys", "Ms. Smith's husband was a king "
         "and father of girls"),
        ("She's here, Women!", "He's here, Men!"),
        ("The theme of the manual shed light on history.",) * 2,
    ],
)  # fmt: skip
def test_genders_are_exchanged(text, expected):
    assert terms.swap_genders(text).text == expected


def test_exchanging_twice_gives_the_text_back():
    rng = random.Random(0)
    plain = ("the", "nurse", "walks", "home", "and", "reads")
    forms = [w for pair in terms.PAIRS[:12] for w in pair if w not in ("mum", "mom", "dad")]
    for _ in range(200):
        words = [rng.choice((*plain, *forms)) for _ in range(20)]
        text = " ".join(w.title() if rng.random() < 0.2 else w for w in words)
        once = terms.swap_genders(text)
        assert terms.swap_genders(once.text).text == text
        assert once.words == sum(w in forms for w in words)


def test_counts_equal_a_plain_window():
    rng = random.Random(1)
    pool = ["he", "Her", "woman", "nurse", "Doctors", "engineer", "German", "thing", "red", "of"]
    texts = [" ".join(rng.choice(pool) for _ in range(rng.randint(1, 60))) for _ in range(40)]
    window = 4
    expected = Counter()
    for text in texts:
        words = [w.lower() for w in re.findall(r"\w+", text)]
        sides = {"female": terms.FEMALE, "male": terms.MALE}
        number = {name: sum(w in side for w in words) for name, side in sides.items()}
        for name, count in number.items():
            expected[f"words/{name}"] += count
        more = number["female"] - number["male"]
        expected[f"documents/{'female' if more > 0 else 'male' if more else 'neither'}"] += 1
        for i, word in enumerate(words):
            word = word.removesuffix("s")
            group = "occupation" if word in terms.OCCUPATIONS else "nationality"
            if word in terms.OCCUPATIONS or word in terms.NATIONALITIES:
                near = words[max(0, i - window) : i + window + 1]
                expected[f"{group}/{word}/all"] += 1
                for name, side in sides.items():
                    expected[f"{group}/{word}/{name}"] += any(w in side for w in near)
    assert bias.count(views(texts), window) == expected
    table = bias.table(expected)
    assert set(table["occupation"]) == {"nurse", "doctor", "engineer"}
    assert table["nationality"]["german"]["all"] == expected["nationality/german/all"]
    lean = bias.leanings(views(["she and her", "he", "he she", "none"]))
    assert lean.tolist() == [1, -1, 0, 0]


def test_excess_leaves_the_asked_share():
    lean = np.array([1] * 10 + [-1] * 100 + [0] * 50, np.int8)
    names = np.random.default_rng(0).integers(0, 2**63, 160).astype(np.uint64)
    for balance, left in ((0.0, 100), (0.1, 100), (0.5, 20), (1.0, 10)):
        gone = bias.excess(lean, names, balance, seed=0)
        assert (lean[~gone] < 0).sum() == left and not gone[lean >= 0].any()
    order = np.random.default_rng(1).permutation(160)
    again = bias.excess(lean[order], names[order], 0.5, seed=0)
    assert (again == bias.excess(lean, names, 0.5, seed=0)[order]).all()
    assert not bias.excess(-np.abs(lean), names, 1.0, seed=0).any()


@pytest.fixture
def made(tmp_path):
    rng = random.Random(2)

    def prose(word):
        words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(30)]
        return " ".join([*words[:15], word, *words[15:]])

    texts = [prose("she, a nurse,") for _ in range(20)]
    texts += [prose("he, the doctor,") for _ in range(60)] + [prose("it") for _ in range(20)]
    rows = "".join(json.dumps({"id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts))
    (tmp_path / "in.jsonl").write_text(rows)
    config = importlib.import_module("configs.corpus.jsonl").get_config()
    config.source.path = str(tmp_path / "in.jsonl")
    config.filters.names = ("length",)
    config.engine.workers = 1
    config.split.validation = 0.1
    return config


def run(config, workdir):
    return stage.run(config, str(workdir), Console(file=io.StringIO()))


def test_the_stage_counts_balances_and_augments(made, tmp_path):
    plain = run(made, tmp_path / "plain")
    assert plain["representation"]["documents"] == {"female": 20, "male": 60, "neither": 20}
    assert plain["representation"]["occupation"]["doctor"] == {"female": 0, "male": 60, "all": 60}
    assert "Representation" in (tmp_path / "plain" / "report.html").read_text()
    made.bias.balance = 0.5
    balanced = run(made, tmp_path / "balanced")
    assert balanced["documents"] == 80 and balanced["reasons"]["excess"]["count"] == 20
    made.bias.balance, made.bias.augment = 0.0, 1.0
    run(made, tmp_path / "more")
    train = list(records.read_documents(tmp_path / "more", split="train"))
    swapped = [d for d in train if "counterfactual_of" in d["meta"]]
    spoken = [d for d in train if d not in swapped and re.search(r"\bs?he\b", d["text"])]
    assert len(swapped) == len(spoken) > 60
    before = {d["id"]: d["text"] for d in spoken}
    for document in swapped:
        original = before[document["meta"]["counterfactual_of"]]
        assert document["text"] == terms.swap_genders(original).text != original
    held_out = list(records.read_documents(tmp_path / "more", split="validation"))
    assert held_out and not any("counterfactual_of" in d["meta"] for d in held_out)
    made.bias.augment = 2
    with pytest.raises(ConfigError, match="augment=2"):
        run(made, tmp_path / "x")

# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest

from llm.data import sources
from llm.errors import ConfigError, DataError
from llm.eval import exact_match, items, multiple_choice, perplexity, samples

TEXTS = ["one two three", "naïve café — ok", "x", "a longer line of words\nwith a second line"]


def test_perplexity_by_hand(make_lm):
    lm = make_lm()
    result = perplexity.score(lm, [*TEXTS, "  \n"], batch_size=3)
    assert result["n"] == 4 and lm.calls == [3, 1]
    loss = -sum(lm.text_logp(text) for text in TEXTS)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    found = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert found["bits_per_byte"] == pytest.approx(loss / n_bytes / math.log(2))
    assert found["byte_perplexity"] == pytest.approx(math.exp(loss / n_bytes))
    assert found["token_perplexity"] == pytest.approx(found["byte_perplexity"])
    assert found["word_perplexity"] == pytest.approx(math.exp(loss / (3 + 4 + 1 + 9)))
    assert found["bytes_per_token"] == 1.0
    assert all(math.isfinite(metric["stderr"]) for metric in result["metrics"].values())


def test_perplexity_needs_text(make_lm):
    with pytest.raises(DataError, match="no text"):
        perplexity.score(make_lm(), [" ", "\n"])


def test_perplexity_reads_documents(make_lm, tmp_path):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "validation.jsonl").write_text("\n".join(lines))
    lm = make_lm()
    result = perplexity.evaluate(lm, documents=str(tmp_path), limit=2)
    assert result["n"] == 2
    loss = -sum(lm.text_logp(text) for text in TEXTS[:2])
    per_byte = loss / sum(len(text.encode()) for text in TEXTS[:2])
    assert result["metrics"]["bits_per_byte"]["value"] == pytest.approx(per_byte / math.log(2))


def brute_force(question, logp):
    """Pick by each rule with plain loops."""
    sums = [logp(" " + choice) for choice in question["choices"]]
    rules = {
        "acc": sums,
        "acc_norm": [s / len(c) for s, c in zip(sums, question["choices"], strict=True)],
        "acc_bytes": [s / len(c.encode()) for s, c in zip(sums, question["choices"], strict=True)],
    }
    hits = {}
    for name, values in rules.items():
        best = 0
        for index, value in enumerate(values):
            if value > values[best]:
                best = index
        hits[name] = best == question["gold"]
    return hits


def random_questions(n, seed=0):
    generator = np.random.default_rng(seed)
    alphabet = list("abcdefgh éß漢")
    questions = []
    for _ in range(n):
        n_options = int(generator.integers(2, 6))
        choices = [
            "q" + "".join(generator.choice(alphabet, generator.integers(1, 12)))
            for _ in range(n_options)
        ]
        questions.append(
            {"query": "Q:", "choices": choices, "gold": int(generator.integers(n_options))}
        )
    return questions


def test_multiple_choice_against_brute_force(make_lm, tmp_path):
    questions = random_questions(60)
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(q) for q in questions))
    lm = make_lm()
    result = multiple_choice.evaluate(lm, path=str(file), batch_size=7)
    expected = [brute_force(question, lm.text_logp) for question in questions]
    for name in ("acc", "acc_norm", "acc_bytes"):
        metric = result["metrics"][name]
        assert metric["value"] == np.mean([hits[name] for hits in expected])
        assert metric["chance"] == pytest.approx(
            np.mean([1 / len(q["choices"]) for q in questions])
        )
        assert metric["interval"][0] < metric["value"] < metric["interval"][1]
    assert result["n"] == 60 == len(result["items"])


def test_partial_scoring_scores_the_same_ending():
    record = {"context_options": ["the cat", "the dog"], "continuation": "ran.", "gold": 1}
    item = items.from_record(record, "here")
    assert item.pairs == (("the cat", " ran."), ("the dog", " ran."))
    result = multiple_choice.metrics([item], [-3.0, -2.0])
    assert {m["value"] for m in result["metrics"].values()} == {1.0}


def test_template_and_delimiter():
    record = {"query": "Why?", "choices": ["a", "b"], "gold": 0}
    item = items.from_record(record, "here", "{query}\nAnswer:", "_")
    assert item.pairs == (("Why?\nAnswer:", "_a"), ("Why?\nAnswer:", "_b"))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"query": "q", "gold": 0},
        {"query": "q", "choices": [], "gold": 0},
        {"query": "q", "choices": ["a", 2], "gold": 0},
        {"query": "q", "choices": ["a", "b"], "gold": 2},
        {"query": "q", "choices": ["a", "b"], "gold": "0"},
        {"context_options": ["a", "b"], "gold": 0},
    ],
)
def test_wrong_questions_are_named(record):
    with pytest.raises(DataError, match="line 3"):
        items.from_record(record, "file, line 3")


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        list(sources.read(str(tmp_path / "none.jsonl")))
    for content, message in (("", "empty"), ("{}\n[1]", "line 2"), ("{}\n{x", "line 2")):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(DataError, match=message):
            list(sources.read(str(tmp_path / "bad.jsonl")))


def functions(n):
    return [
        {
            "text": "",
            "meta": {
                "signature": f"def f{i}({{summary}})",
                "summary": f"Return the {i}th thing.",
                "module": "pack.age",
                "qualname": f"Class.f{i}",
            },
        }
        for i in range(n)
    ]


def test_function_questions_are_fair_and_seeded():
    documents = [*functions(40), {"meta": {}}, {"meta": {"signature": "def g()"}}, *functions(3)]
    asked = items.describe_functions(documents, n_options=4, seed=5)
    assert len(asked) == 40 and asked == items.describe_functions(documents, 4, seed=5)
    assert asked != items.describe_functions(documents, 4, seed=6)
    assert len({options[gold] for options, gold in asked}) == 40
    assert all(len(set(options)) == 4 for options, _ in asked)
    places = np.bincount([gold for _, gold in asked], minlength=4)
    assert places.min() >= 3
    with pytest.raises(DataError, match="Only 3"):
        items.describe_functions(functions(3), n_options=4)


def test_function_items_fill_their_templates():
    asked = items.describe_functions(functions(9), n_options=3, limit=2, seed=1)
    (options, gold), _ = asked
    one = options[0]
    assert one.call == f"pack.age.Class.{one.signature.removeprefix('def ')}"
    assert one.call.startswith(one.name + "(")
    made = items.function_items(asked, "{name} {signature}{x}\n", "{summary}!")
    assert made[0].pairs[0] == (
        f"{one.name} {one.signature}{{x}}\n",
        options[gold].summary + "!",
    )
    assert made[0].gold == gold and len(made) == 2
    other = items.function_items(asked, "{summary}:", " {call}", "continuation")
    assert other[0].pairs[0] == (options[gold].summary + ":", " " + one.call)
    assert other[0].texts[0] == " " + one.call
    with pytest.raises(DataError, match="names no function"):
        items.function_items(asked, "{summary}", "{signature}")


def test_which_function_runs(make_lm, tmp_path):
    documents = [{**d, "text": "t"} for d in functions(12)]
    (tmp_path / "validation.jsonl").write_text("\n".join(json.dumps(d) for d in documents))
    result = multiple_choice.evaluate_functions(make_lm(), documents=str(tmp_path), limit=9)
    # The model ignores the context, so it always takes the first of four equal options.
    assert result["n"] == 9
    first = np.mean([record["gold"] == 0 for record in result["items"]])
    assert result["metrics"]["acc"]["value"] == first
    assert result["metrics"]["acc"]["chance"] == 0.25
    with pytest.raises(ConfigError, match="vary"):
        multiple_choice.evaluate_functions(make_lm(), documents=str(tmp_path), vary="both")


@pytest.mark.parametrize(
    ("text", "marked", "last"),
    [
        ("so #### 1,234", "1234", "1234"),
        ("#### $5.50 and then 7", "5.5", "7"),
        ("the answer is -3.", None, "-3"),
        ("####-0012.500", "-12.5", "-12.5"),
        ("costs $.75", None, "0.75"),
        ("none", None, None),
        ("it is -0", None, "0"),
    ],
)
def test_numbers(text, marked, last):
    assert exact_match.marked_number(text) == marked
    assert exact_match.last_number(text) == last


def test_exact_match_of_text_and_numbers(make_lm, tmp_path):
    file = tmp_path / "qa.jsonl"
    records = [{"q": "a", "a": "The  End."}, {"q": "b", "a": "x"}, {"q": "c", "a": "y"}]
    file.write_text("\n".join(json.dumps(r) for r in records))
    lm = make_lm({"a?": " the end", "b?": "z", "c?": "Y!"})
    result = exact_match.evaluate(
        lm, path=str(file), prompt_field="q", answer_field="a", template="{prompt}?", max_tokens=5
    )
    assert result["metrics"]["exact_match"]["value"] == pytest.approx(2 / 3)
    assert lm.options == {"max_tokens": 5, "temperature": 0.0, "stop": ["\n"]}
    outputs = ["… #### 12", "so 12 apples", "13", ""]
    result = exact_match.metrics("abcd", outputs, ["a #### 12"] * 4, extract="number")
    assert result["metrics"]["strict_match"]["value"] == 0.25
    assert result["metrics"]["flexible_match"]["value"] == 0.5
    with pytest.raises(DataError, match="prompt_field"):
        exact_match.evaluate(lm, path=str(file))


def test_samples(make_lm):
    result = samples.evaluate(make_lm({"a": "x y x y x"}), prompts=("a", "b"))
    assert result["n"] == 2
    assert result["metrics"]["distinct_1"]["value"] == pytest.approx((2 / 5 + 1) / 2)
    assert result["metrics"]["distinct_2"]["value"] == pytest.approx((2 / 4 + 1) / 2)
    with pytest.raises(ConfigError, match="prompts"):
        samples.evaluate(make_lm(), prompts=())

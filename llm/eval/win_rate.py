# SPDX-License-Identifier: Apache-2.0
"""Win rates between models, and ratings from all their games."""

import itertools
from collections.abc import Sequence
from typing import Any

from llm.core import ratings, statistics
from llm.data import sources
from llm.errors import ConfigError, DataError
from llm.eval import exact_match
from llm.generate import judging

Game = tuple[int, int, float]


def evaluate(
    lm: Any,
    *,
    others: Sequence[str],
    path: str,
    judge: str = "",
    criterion: str = judging.CRITERION,
    margin: float = 0.0,
    extract: str = "text",
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    limit: int = 0,
    rounds: int = 200,
) -> dict[str, Any]:
    """Let models answer the same prompts and compare every two of them on each.

    Args:
        lm: the first player.
        others: the other players, as `llm.load` takes them.
        path: JSONL of {"prompt": text or messages, "answer"?}.
        judge: a model that compares answers in both orders; "" compares with the known answer.
        criterion: what the judge is asked.
        margin: log-odds up to which a judgement is a tie.
        extract: for known answers, "text" or "number" (see exact_match).
        max_tokens, temperature, seed: of the answers.
        limit: prompts at most; 0 for all.
        rounds: bootstrap resamples of the ratings.

    Returns:
        Metrics win_rate/<other> and ties/<other> of the first player, and rating/<player>:
        Bradley–Terry with 95 % bootstrap intervals over prompts.

    Raises:
        ConfigError: nobody to play against.
        DataError: a record has no prompt, or no answer where there is no judge.
    """
    from llm.generate.language_model import load

    if not others:
        raise ConfigError("A win_rate task has no other players.", "Set others=('…',).")
    records = list(sources.read(path))
    records = records[:limit] if limit else records
    for number, record in enumerate(records, 1):
        if not record.get("prompt") or not (judge or "answer" in record):
            raise DataError(
                f"{path}, line {number}: no prompt, or no answer and no judge.",
                "Write prompt and answer, or name a judge.",
            )
    chats = [_chat(record["prompt"]) for record in records]
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    answers = [lm.generate(chats, **options)]
    answers += [load(other).generate(chats, **options) for other in others]
    referee = load(judge) if judge else None
    games: list[Game] = []
    for a, b in itertools.combinations(range(len(answers)), 2):
        if referee is not None:
            trio = zip(chats, answers[a], answers[b], strict=True)
            items = [judging.Comparison(*one) for one in trio]
            scores = [v.score(margin) for v in judging.compare(referee, items, criterion)]
        else:
            known = [str(record["answer"]) for record in records]
            trio = zip(known, answers[a], answers[b], strict=True)
            scores = [_by_answer(*one, extract) for one in trio]
        games += [(a, b, score) for score in scores]
    groups = list(range(len(records))) * (len(games) // len(records))
    names = ["model", *others]
    shown = [
        {"prompt": r["prompt"], **dict(zip(names, told, strict=True))}
        for r, told in zip(records, zip(*answers, strict=True), strict=True)
    ]
    return {"n": len(records), "metrics": metrics(names, games, groups, rounds), "items": shown}


def metrics(
    names: Sequence[str], games: Sequence[Game], groups: Sequence[int], rounds: int = 200
) -> dict[str, Any]:
    """Sum games up; ties count half. Arguments and results: see `evaluate` and `ratings`."""
    found: dict[str, Any] = {}
    for number, name in enumerate(names[1:], 1):
        scores = [score for a, b, score in games if (a, b) == (0, number)]
        found[f"win_rate/{name}"] = statistics.mean(scores).metric(chance=0.5)
        found[f"ties/{name}"] = statistics.proportion([score == 0.5 for score in scores])
    rated = ratings.bradley_terry(len(names), games)
    reach = ratings.intervals(len(names), games, groups, rounds)
    for name, value, (low, high) in zip(names, rated, reach, strict=True):
        entry = {"value": float(value), "stderr": float(high - low) / (2 * 1.96)}
        found[f"rating/{name}"] = {**entry, "interval": [float(low), float(high)]}
    return found


def _chat(prompt: Any) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _by_answer(answer: str, first: str, second: str, extract: str) -> float:
    """Return 1 where only the first text has the answer, 0 where only the second, else 0.5."""
    kind = "exact_match" if extract == "text" else "flexible_match"
    told = exact_match.metrics(("", ""), (first, second), (answer, answer), extract)["items"]
    return 0.5 + 0.5 * (told[0][kind] - told[1][kind])

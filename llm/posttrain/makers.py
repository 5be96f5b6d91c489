# SPDX-License-Identifier: Apache-2.0
"""Ways to make training data with a model: best of n, judged pairs, revisions, refusals."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llm import files
from llm.core import config as configs
from llm.core import statistics
from llm.errors import ConfigError
from llm.generate import judging
from llm.posttrain import rewards as verifiers
from llm.posttrain.feedback import Maker, Prompt, Record, Setting, read_prompts, said
from llm.text import refusals as wordings

Score = Callable[[Prompt, Sequence[str]], list[float]]


def _score_by_reward_model(setting: Setting, *, model: str) -> Score:
    """Score by a reward model."""
    from llm.generate.language_model import load

    lm = load(model)

    def score(prompt: Prompt, answers: Sequence[str]) -> list[float]:
        return [float(s) for s in lm.scores([prompt.messages + said(a) for a in answers])]

    return score


def _score_by_judge(
    setting: Setting, *, model: str = "", criterion: str = judging.CRITERION, chat: bool = True
) -> Score:
    """Score by the mean chance of beating another answer, as a judge sees it; "" is the writer."""
    lm = _judge_model(setting, model)

    def score(prompt: Prompt, answers: Sequence[str]) -> list[float]:
        return judging.mean_win(lm, prompt.messages, answers, criterion=criterion, chat=chat)

    return score


def _score_by_verifier(setting: Setting, *, rewards: Mapping[str, Mapping[str, Any]]) -> Score:
    """Score by rules and the known answer: the weighted sum of `llm.posttrain.rewards`."""
    rules = verifiers.judge(rewards)

    def score(prompt: Prompt, answers: Sequence[str]) -> list[float]:
        samples = [
            verifiers.Sample(prompt.messages, prompt.answer, text, _length(setting, text), True)
            for text in answers
        ]
        # What no rule can judge is worth nothing.
        return [float(s) for s in np.nan_to_num(rules.total(rules.each(samples)))]

    return score


def _length(setting: Setting, text: str) -> int:
    tokenizer = getattr(setting.lm, "tokenizer", None)
    return len(tokenizer.encode(text)) if tokenizer is not None else len(text.split())


# config.maker.scorer.name: (setting, **section) -> (prompt, answers) -> scores
SCORERS: dict[str, Callable[..., Score]] = {
    "reward_model": _score_by_reward_model,
    "judge": _score_by_judge,
    "verifier": _score_by_verifier,
}


def _judge_model(setting: Setting, model: str) -> Any:
    if model:
        from llm.generate.language_model import load

        return load(model)
    return _need(setting)


def _need(setting: Setting) -> Any:
    if setting.lm is None:
        raise ConfigError("config.model is empty.", "Give --config.model=<what llm.load takes>.")
    return setting.lm


def best_of(
    setting: Setting,
    *,
    scorer: Mapping[str, Any],
    n: int = 4,
    margin: float = 0.0,
    least: float | None = None,
) -> Maker:
    """Draw n answers to each prompt and score them: the best against the worst, and the best alone.

    Writes answers.jsonl (what the labelling page reads), preferences.jsonl (best and worst, where
    they differ by more than `margin`) and chats.jsonl (rejection sampling: the best answer, where
    its score is at least `least`).

    Args:
        setting: what writes.
        scorer: {"name": of `SCORERS`, …}.
        n: answers, at least two.
        margin: of scores.
        least: score; None takes every best answer.
    """
    _need(setting)
    if n < 2:
        raise ConfigError(f"config.maker.n={n}.", "Draw at least 2 answers.")
    build = configs.choose(scorer.get("name", ""), SCORERS, "scorer")
    score = build(setting, **configs.bind(build, scorer, "maker.scorer", given=("setting",)))

    def make(prompts: Sequence[Prompt]) -> list[Record]:
        keys = [f"{prompt.id} {i}" for prompt in prompts for i in range(n)]
        texts = setting.write([p.messages for p in prompts for _ in range(n)], keys)
        made = []
        for number, prompt in enumerate(prompts):
            # Of equal answers one is kept: nothing tells them apart.
            answers = list(dict.fromkeys(texts[number * n : number * n + n]))
            made.append({"answers": answers, "scores": score(prompt, answers)})
        return made

    def extremes(record: Record) -> tuple[int, int]:
        order = sorted(range(len(record["scores"])), key=lambda i: record["scores"][i])
        return order[-1], order[0]

    def pairs(record: Record) -> Iterator[Record]:
        best, worst = extremes(record)
        scores, answers = record["scores"], record["answers"]
        if scores[best] - scores[worst] > margin:
            meta = {"scores": [scores[best], scores[worst]], "answers": len(answers)}
            yield _pair(record["prompt"], answers[best], answers[worst], meta)

    def chats(record: Record) -> Iterator[Record]:
        best, _ = extremes(record)
        if least is None or record["scores"][best] >= least:
            yield {"messages": record["prompt"] + said(record["answers"][best])}

    def answers(record: Record) -> Iterator[Record]:
        if len(record["answers"]) > 1:
            texts = [{"text": text, "model": setting.model} for text in record["answers"][:4]]
            yield {"prompt": record["prompt"], "answers": texts}

    def metrics(records: Sequence[Record]) -> dict[str, Any]:
        scores = [record["scores"] for record in records]
        means = [sum(s) / len(s) for s in scores]
        found = {"score_best": [max(s) for s in scores], "score_mean": means}
        found["different"] = [len(s) / n for s in scores]
        return {"n": len(records), "metrics": _means(found)}

    outputs = {"answers.jsonl": answers, "preferences.jsonl": pairs, "chats.jsonl": chats}
    return Maker(read_prompts, make, outputs, metrics)


def judge(
    setting: Setting,
    *,
    criterion: str = judging.CRITERION,
    chat: bool = True,
    margin: float = 0.0,
) -> Maker:
    """Label pairs of answers by a judge, config.model, in both orders (RLAIF; arXiv:2309.00267).

    Where the pairs say which answer is better, the judge is measured against that. Writes
    preferences.jsonl: as the judge has them, pairs within `margin` left out.

    Args:
        setting: the judge.
        criterion: in what the better answer is better.
        chat: ask by the model's chat template, else by plain text.
        margin: log-odds up to which a pair is a tie.
    """
    lm = _need(setting)

    def prompts(path: str, limit: int) -> list[Prompt]:
        return read_prompts(path, limit, pairs=True)

    def make(part: Sequence[Prompt]) -> list[Record]:
        items, gold = [], []
        for prompt in part:
            chosen, rejected = prompt.pair or ("", "")
            # Which stands first must not tell which is better.
            first = random.Random(files.hash_json([setting.seed, prompt.id])).random() < 0.5
            pair = (chosen, rejected) if first else (rejected, chosen)
            items.append(judging.Comparison(prompt.messages, *pair))
            gold.append(first)
        verdicts = judging.compare(lm, items, criterion, chat)
        return [
            {"first": item.first, "second": item.second, "gold": first, "verdict": list(verdict)}
            for item, first, verdict in zip(items, gold, verdicts, strict=True)
        ]

    def pairs(record: Record) -> Iterator[Record]:
        verdict = judging.Verdict(*record["verdict"])
        score = verdict.score(margin)
        sides = [record["first"], record["second"]]
        if score != 0.5:
            better, worse = sides if score == 1 else sides[::-1]
            meta = {"preference": abs(verdict.preference), "lean": verdict.lean}
            yield _pair(record["prompt"], better, worse, meta)

    def metrics(records: Sequence[Record]) -> dict[str, Any]:
        verdicts = [judging.Verdict(*record["verdict"]) for record in records]
        found = judging.agreement(verdicts, [record["gold"] for record in records])
        return {"n": len(records), "metrics": found}

    return Maker(prompts, make, {"preferences.jsonl": pairs}, metrics)


def revise(
    setting: Setting,
    *,
    principles: Sequence[str],
    rounds: int = 1,
    critique: str = "Name what in your last answer is not in keeping with this: {principle}",
    revision: str = "Write the answer again so that it keeps to this: {principle} "
    "Give the new answer only.",
) -> Maker:
    """Let a model criticise and revise its own answers (Bai et al. 2022, arXiv:2212.08073).

    Writes chats.jsonl (the last revision) and preferences.jsonl (it against the first answer, where
    they differ).

    Args:
        setting: what writes.
        principles: one is drawn for each round of a prompt.
        rounds: of critique and revision.
        critique, revision: what is asked, with {principle}.
    """
    _need(setting)
    if not principles or rounds < 1:
        raise ConfigError(
            "There is nothing to revise by.", "Give maker.principles and rounds >= 1."
        )

    def make(prompts: Sequence[Prompt]) -> list[Record]:
        first = setting.write([p.messages for p in prompts], [f"{p.id} answer" for p in prompts])
        newest = list(first)
        steps: list[list[dict[str, str]]] = [[] for _ in prompts]
        for number in range(rounds):
            keys = [f"{prompt.id} {number}" for prompt in prompts]
            drawn = [
                random.Random(files.hash_json([setting.seed, key])).choice(list(principles))
                for key in keys
            ]
            asked = [
                [*p.messages, *said(a), _user(critique.replace("{principle}", law))]
                for p, a, law in zip(prompts, newest, drawn, strict=True)
            ]
            critiques = setting.write(asked, [f"{key} critique" for key in keys])
            asked = [
                [*chat, *said(found), _user(revision.replace("{principle}", law))]
                for chat, found, law in zip(asked, critiques, drawn, strict=True)
            ]
            newest = setting.write(asked, [f"{key} revision" for key in keys])
            for step, law, found, new in zip(steps, drawn, critiques, newest, strict=True):
                step.append({"principle": law, "critique": found, "revision": new})
        return [{"answer": a, "steps": step} for a, step in zip(first, steps, strict=True)]

    def last(record: Record) -> str:
        return record["steps"][-1]["revision"]

    def chats(record: Record) -> Iterator[Record]:
        if last(record):
            yield {"messages": record["prompt"] + said(last(record))}

    def pairs(record: Record) -> Iterator[Record]:
        if last(record) and last(record) != record["answer"]:
            yield _pair(record["prompt"], last(record), record["answer"], {"by": "revision"})

    def metrics(records: Sequence[Record]) -> dict[str, Any]:
        changed = [last(record) != record["answer"] for record in records]
        refused = [wordings.is_refusal(last(record)) for record in records]
        found = {"changed": statistics.proportion(changed)}
        return {"n": len(records), "metrics": found | {"refused": statistics.proportion(refused)}}

    return Maker(read_prompts, make, {"chats.jsonl": chats, "preferences.jsonl": pairs}, metrics)


def refusals(setting: Setting) -> Maker:
    """Make chats that decline harmful requests and answer their harmless twins.

    Requests and refusals come from templates (`llm.text.refusals`), of topics that the evaluation
    of refusals never asks. With config.model the twins are answered by it (and left out where it
    declines), and where it answers a harmful request that becomes a preference pair: the refusal
    against its answer. Without a model only the refusals are written.

    Args:
        setting: may write.
    """
    asked = {_request_id(r): (number, r) for number, r in enumerate(wordings.requests("train"))}

    def prompts(path: str, limit: int) -> list[Prompt]:
        if path:
            raise ConfigError("The maker 'refusals' reads no file.", "Leave config.path empty.")
        found = [Prompt(key, [_user(r.text)]) for key, (_, r) in asked.items()]
        kept = [p for p in found if setting.lm is not None or asked[p.id][1].harmful]
        return kept[:limit] if limit else kept

    def make(part: Sequence[Prompt]) -> list[Record]:
        own: list[str | None] = [None] * len(part)
        if setting.lm is not None:
            own = list(setting.write([p.messages for p in part], [p.id for p in part]))
        made = []
        for prompt, answer in zip(part, own, strict=True):
            number, request = asked[prompt.id]
            declined = wordings.refusal(request, number // 2) if request.harmful else None
            made.append({"harmful": request.harmful, "refusal": declined, "answer": answer})
        return made

    def answered(record: Record) -> bool:
        return bool(record["answer"]) and not wordings.is_refusal(record["answer"])

    def chats(record: Record) -> Iterator[Record]:
        if record["harmful"]:
            yield {"messages": record["prompt"] + said(record["refusal"])}
        elif answered(record):
            yield {"messages": record["prompt"] + said(record["answer"])}

    def pairs(record: Record) -> Iterator[Record]:
        if record["harmful"] and answered(record):
            yield _pair(record["prompt"], record["refusal"], record["answer"], {"by": "refusal"})

    def metrics(records: Sequence[Record]) -> dict[str, Any]:
        harmful = [record["harmful"] for record in records]
        return {"n": len(records), "metrics": {"harmful": statistics.proportion(harmful)}}

    return Maker(prompts, make, {"chats.jsonl": chats, "preferences.jsonl": pairs}, metrics)


def _request_id(request: wordings.Request) -> str:
    return files.hash_json([_user(request.text)])


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _pair(prompt: Any, chosen: str, rejected: str, meta: dict[str, Any]) -> Record:
    return {"prompt": prompt, "chosen": said(chosen), "rejected": said(rejected), "meta": meta}


def _means(found: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {name: statistics.mean(values).metric() for name, values in found.items()}

# SPDX-License-Identifier: Apache-2.0
"""What a reward model and DPO learn from real preferences, beside a bag of words.

    python benchmarks/preferences.py --data=hh_harmless.jsonl.gz --length=256 \\
        [--reward=runs/smollm2/reward] [--policy=runs/smollm2/dpo] --base=MODEL

Held out is what `config.data` of the two configs holds out: a fifth of the prompts, by hash; pairs
of which one side has more than `length` tokens are left out, as in training. Prints one JSON line
per model: pairs, hits (a tie is half of one), accuracy and its 95 % interval (Wilson's).

The bag of words is a logistic regression without intercept on the difference of log(1 + count) of
the words of the two answers; its ridge penalty is chosen by five-fold cross-validation on the
training pairs. DPO is judged by its implicit reward, the answer's log-probability under the policy
minus that under the base.
"""

import argparse
import json
import re
from collections import Counter
from typing import Any

import jax
import numpy as np

import llm
from llm.core import statistics
from llm.data import examples, prepare, rows
from llm.posttrain import preference
from llm.posttrain.rows import part

VALIDATION = 0.2
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


def pairs(path: str, split: str, tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Return the pairs of a split that fit."""
    found = []
    for record in part(path, split, VALIDATION, "hh"):
        sides = examples.preference_examples(record, tokenizer)
        if max(len(side["tokens"]) for side in sides) <= length:
            found.append(record)
    return found


def words(text: str) -> Counter[str]:
    """Count the words of a text."""
    return Counter(re.findall(r"[a-z']+", text.lower()))


def differences(records: list[dict[str, Any]], known: dict[str, int]) -> np.ndarray:
    """Return features of chosen minus rejected answers [pairs, words]."""
    made = np.zeros((len(records), len(known)))
    for row, record in enumerate(records):
        for side, sign in (("chosen", 1), ("rejected", -1)):
            for word, count in words(record[side][0]["content"]).items():
                if word in known:
                    made[row, known[word]] += sign * np.log1p(count)
    return made


def fit(x: np.ndarray, penalty: float) -> np.ndarray:
    """Return weights of the logistic regression that puts chosen before rejected (Newton)."""
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(x @ w))  # of being wrong
        gradient = penalty * w - x.T @ p
        # Woodbury: there are fewer pairs than words.
        s = np.sqrt(p * (1 - p))[:, None] * x
        inner = np.linalg.solve(penalty * np.eye(len(x)) + s @ s.T, s @ gradient)
        step = (gradient - s.T @ inner) / penalty
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return w


def bag_of_words(train: list[dict[str, Any]], held: list[dict[str, Any]]) -> np.ndarray:
    """Return the margins of held-out pairs."""
    seen: Counter[str] = Counter()
    for record in train:
        for side in ("chosen", "rejected"):
            seen.update(set(words(record[side][0]["content"])))
    known = {word: i for i, word in enumerate(sorted(w for w, n in seen.items() if n > 1))}
    x = differences(train, known)
    fold = np.random.default_rng(0).permutation(len(x)) % 5

    def validated(penalty: float) -> float:
        margins = [x[fold == f] @ fit(x[fold != f], penalty) for f in range(5)]
        return float(np.mean(np.concatenate(margins) > 0))

    best = max(PENALTIES, key=validated)
    return differences(held, known) @ fit(x, best)


def scored(lm: Any, records: list[dict[str, Any]]) -> np.ndarray:
    """Return the margins of a reward model."""
    chats = [r["prompt"] + r[side] for r in records for side in ("chosen", "rejected")]
    found = lm.scores(chats, batch=8).reshape(-1, 2)
    return found[:, 0] - found[:, 1]


def likelihoods(lm: Any, batches: list[rows.Batch]) -> np.ndarray:
    """Return log-probability and length of both answers: [pairs, 2, 2]."""

    @jax.jit
    def one(params: Any, batch: Any) -> Any:
        found = preference.answers(lm.model, params, preference.joined(batch), "", None, 0)
        return found.logps, found.length

    made = []
    for batch in batches:
        logps, length = one(lm.params, batch)
        made.append(np.stack([logps.reshape(2, -1).T, length.reshape(2, -1).T], axis=-1))
    return np.concatenate(made)


def report(name: str, margins: np.ndarray) -> None:
    """Print one line."""
    hits = float((0.5 + 0.5 * np.sign(margins)).sum())
    low, high = statistics.wilson(round(hits), len(margins))
    values = {"model": name, "pairs": len(margins), "hits": hits}
    accuracy = {"accuracy": hits / len(margins), "low": low, "high": high}
    rounded = {k: round(v, 4) for k, v in accuracy.items()}
    print(json.dumps(values | rounded | {"margin": round(float(margins.mean()), 4)}), flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--base", required=True, help="the model that the runs started from")
    parser.add_argument("--reward", default="", help="workdir of a reward model")
    parser.add_argument("--policy", default="", help="workdir of a DPO run")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--folder", default="runs/preferences", help="for rows")
    args = parser.parse_args()
    base = llm.load(args.base)
    train, held = (
        pairs(args.data, s, base.tokenizer, args.length) for s in ("train", "validation")
    )
    print(json.dumps({"training_pairs": len(train), "held_out": len(held)}), flush=True)
    report("bag of words", bag_of_words(train, held))
    size = [len(r["chosen"][0]["content"]) - len(r["rejected"][0]["content"]) for r in held]
    report("the longer answer", np.array(size, float))
    if args.reward:
        report("reward model", scored(llm.load(args.reward).merge(), held))
    if args.policy:
        prepare.prepare_preferences(held, base.tokenizer, args.length, args.folder)
        data = rows.open_rows(args.folder)
        batches = [data.take(np.arange(i, min(i + 8, len(data)))) for i in range(0, len(data), 8)]
        before, after = (likelihoods(lm, batches) for lm in (base, llm.load(args.policy).merge()))
        report("base, log-probability", before[:, 0, 0] - before[:, 1, 0])
        means = before[..., 0] / before[..., 1]
        report("base, log-probability per token", means[:, 0] - means[:, 1])
        moved = after[..., 0] - before[..., 0]
        report("DPO, implicit reward", moved[:, 0] - moved[:, 1])


if __name__ == "__main__":
    main()

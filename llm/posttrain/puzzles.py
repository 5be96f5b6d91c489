# SPDX-License-Identifier: Apache-2.0
"""Small tasks with known answers, made by a seed: to see reinforcement learning work in minutes."""

import random
from collections.abc import Callable

from llm.core import config as configs

DIGITS = "0123456789"
NOISE = "".join(map(chr, (*range(33, 127), *range(161, 512))))  # no space: verifiers strip those


def _digits(rng: random.Random, n: int) -> str:
    return "".join(rng.choice(DIGITS) for _ in range(n))


def _largest(rng: random.Random, size: int) -> tuple[str, str]:
    text = _digits(rng, size)
    return f"max {text}", max(text)


def _sorted(rng: random.Random, size: int) -> tuple[str, str]:
    text = _digits(rng, size)
    return f"sort {text}", "".join(sorted(text))


def _reversed(rng: random.Random, size: int) -> tuple[str, str]:
    text = _digits(rng, size)
    return f"reverse {text}", text[::-1]


def _sum(rng: random.Random, size: int) -> tuple[str, str]:
    a, b = (rng.randrange(10**size) for _ in range(2))
    return f"{a}+{b}", str(a + b)


PUZZLES: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {
    "largest": _largest,
    "sorted": _sorted,
    "reversed": _reversed,
    "sum": _sum,
}


def make(kind: str, *, count: int, size: int, seed: int) -> list[dict[str, str]]:
    """Return up to `count` different {"prompt", "answer"} of a kind.

    Args:
        kind: of `PUZZLES`.
        count: how many are drawn; repeated ones count once.
        size: digits.
        seed: of the draw.
    """
    puzzle = configs.choose(kind, PUZZLES, "puzzle")
    rng = random.Random(f"{kind}/{size}/{seed}")
    drawn = dict(puzzle(rng, size) for _ in range(count))
    return [{"prompt": prompt, "answer": answer} for prompt, answer in drawn.items()]


def chats(records: list[dict[str, str]], *, wrong: float, seed: int) -> list[dict]:
    """Return the records as chats, some of them with another one's answer.

    Args:
        records: {"prompt", "answer"}.
        wrong: the share of answers taken from elsewhere: who learns from them knows the form of
            an answer, and is right only now and then.
        seed: of the choice.
    """
    rng = random.Random(seed)
    made = []
    for record in records:
        other = rng.choice(records) if rng.random() < wrong else record
        messages = [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": other["answer"]},
        ]
        made.append({"messages": messages})
    return made


def preferences(records: list[dict[str, str]], *, seed: int) -> list[dict[str, str]]:
    """Return pairs of the right answer and a wrong one.

    A third of the wrong answers are answers, right or wrong, with characters too many: who is to
    judge what a policy comes to write must have seen answers of another form. Of the others half
    stand in the question, where one does: those are hardest to tell.

    Args:
        records: {"prompt", "answer"}, with at least two different answers.
        seed: of the wrong ones.
    """
    rng = random.Random(seed)
    answers = sorted({record["answer"] for record in records})
    made = []
    for record in records:
        prompt, right = record["prompt"], record["answer"]
        others = [answer for answer in answers if answer != right]
        near = [answer for answer in others if answer in prompt]
        wrong = rng.choice(near if near and rng.random() < 0.5 else others)
        if rng.random() < 1 / 3:
            whole = right if rng.random() < 0.5 else wrong
            wrong = right
            while wrong == right:  # as 4 becomes 42, where that is the sum
                wrong = _spoilt(rng, whole)
        made.append({"prompt": prompt, "chosen": right, "rejected": wrong})
    return made


def _spoilt(rng: random.Random, answer: str) -> str:
    """Put one to three characters, or digits, before or after an answer."""
    known = rng.choice((DIGITS, NOISE))
    more = "".join(rng.choice(known) for _ in range(rng.randint(1, 3)))
    return more + answer if rng.random() < 0.5 else answer + more

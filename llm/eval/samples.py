# SPDX-License-Identifier: Apache-2.0
"""Sample generations for a person to read, with two plain measures of repetition."""

from collections.abc import Sequence
from typing import Any

from llm.core import statistics
from llm.errors import ConfigError


def evaluate(
    lm: Any,
    *,
    prompts: Sequence[str],
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Continue each prompt.

    Args:
        lm: a language model with `generate`.
        prompts: texts to continue.
        max_tokens, temperature, top_p, stop, seed: of the generation; temperature 0 is greedy.

    Returns:
        The texts, and metrics distinct_1 and distinct_2 (different words, word pairs, per word or
        pair of a continuation; Li et al. 2016) averaged over prompts.
    """
    if not prompts:
        raise ConfigError("A samples task has no prompts.", "Set its prompts=('…',).")
    outputs = lm.generate(
        list(prompts),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=list(stop),
        seed=seed,
    )
    items = [{"prompt": p, "output": o} for p, o in zip(prompts, outputs, strict=True)]
    found = {f"distinct_{n}": [distinct(o, n) for o in outputs] for n in (1, 2)}
    return {
        "n": len(items),
        "metrics": {name: statistics.mean(values).metric() for name, values in found.items()},
        "items": items,
    }


def distinct(text: str, n: int) -> float:
    """Return the share of different word n-grams; 1 for a text too short to have any."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0

# SPDX-License-Identifier: Apache-2.0
"""Rewards: functions of samples that say how good each answer is, chosen by name.

A reward is any function (samples, **options) -> a number per sample; None or NaN says that it
cannot judge that one. Besides the names of `REWARDS`, a config may name a Python function of its
own as "module:function".
"""

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.core import config as configs
from llm.errors import ConfigError, unknown


class Sample(NamedTuple):
    """An answer to judge.

    Attributes:
        prompt: the question: a text, or the messages of a chat.
        answer: what is expected, where the task says so, or None.
        text: what the model said.
        tokens: how many, with the stop token.
        stopped: whether it ended by itself.
    """

    prompt: Any
    answer: Any
    text: str
    tokens: int
    stopped: bool


Scores = Sequence[float | None] | np.ndarray
Reward = Callable[..., Scores]


def exact(samples: Sequence[Sample], *, ignore_case: bool = False) -> Scores:
    """Give 1 for the expected answer, spaces at its ends and repeated ones aside, else 0."""

    def plain(text: Any) -> str:
        joined = " ".join(str(text).split())
        return joined.casefold() if ignore_case else joined

    return [None if s.answer is None else float(plain(s.text) == plain(s.answer)) for s in samples]


_NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"


def _float(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def number(samples: Sequence[Sample], *, tolerance: float = 1e-6) -> Scores:
    """Give 1 where the last number of the answer is the last of the expected one (relative)."""

    def last(text: Any) -> float | None:
        found = re.findall(_NUMBER, str(text))
        return _float(found[-1]) if found else None

    def score(sample: Sample) -> float | None:
        want, have = last(sample.answer), last(sample.text)
        if sample.answer is None or want is None:
            return None
        return float(have is not None and math.isclose(have, want, rel_tol=tolerance, abs_tol=1e-9))

    return [score(s) for s in samples]


# Of a dimension: unit -> how many of the first
UNITS: dict[str, dict[str, float]] = {
    "length": {
        "m": 1,
        "km": 1e3,
        "cm": 1e-2,
        "mm": 1e-3,
        "mi": 1609.344,
        "ft": 0.3048,
        "in": 0.0254,
    },
    "mass": {"kg": 1, "g": 1e-3, "mg": 1e-6, "t": 1e3, "lb": 0.45359237, "oz": 0.028349523125},
    "time": {"s": 1, "ms": 1e-3, "min": 60, "h": 3600, "d": 86400},
    "volume": {"l": 1, "ml": 1e-3, "m3": 1e3},
    "data": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024, "MiB": 2**20, "GiB": 2**30},
}
_MEASURE = re.compile(rf"({_NUMBER})\s*([A-Za-z]+3?)")


def quantity(text: str) -> tuple[str, float] | None:
    """Return the last quantity of a text as (dimension, amount in its first unit), or None."""
    for amount, unit in reversed(_MEASURE.findall(text)):
        for dimension, units in UNITS.items():
            if unit in units:
                return dimension, _float(amount) * units[unit]
    return None


def units(samples: Sequence[Sample], *, tolerance: float = 1e-3, partial: float = 0.0) -> Scores:
    """Give 1 for the expected quantity in any unit: "1500 m" is "1.5 km".

    Args:
        samples: answers.
        tolerance: relative.
        partial: for a wrong amount of the right dimension.
    """

    def score(sample: Sample) -> float | None:
        want, have = quantity(str(sample.answer)), quantity(sample.text)
        if sample.answer is None or want is None:
            return None
        if have is None or have[0] != want[0]:
            return 0.0
        return 1.0 if math.isclose(have[1], want[1], rel_tol=tolerance) else partial

    return [score(s) for s in samples]


def pattern(samples: Sequence[Sample], *, regex: str, whole: bool = True) -> Scores:
    """Give 1 where a regular expression matches the (whole) answer; the pattern is the user's."""
    compiled = re.compile(regex, re.DOTALL)
    match = compiled.fullmatch if whole else compiled.search
    return [float(bool(match(s.text.strip()))) for s in samples]


def json_schema(samples: Sequence[Sample], *, schema: Mapping[str, Any] | None = None) -> Scores:
    """Give 1 where the answer is JSON that fits a schema, 0.5 where it is other JSON."""

    def score(text: str) -> float:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if fits(value, schema or {}) else 0.5

    return [score(s.text) for s in samples]


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_KEYWORDS = ("type", "enum", "properties", "required", "additionalProperties", "items")


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Tell whether a value fits a schema of the keywords that tool calls use.

    Raises:
        ConfigError: another keyword, which would otherwise be silently true.
    """
    for key in schema:
        if key not in _KEYWORDS:
            raise unknown("keyword of the schema", key, _KEYWORDS)
    if "type" in schema and not _TYPES[schema["type"]](value):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if any(name not in value for name in schema.get("required", ())):
            return False
        if schema.get("additionalProperties") is False and set(value) - set(properties):
            return False
        return all(fits(value[name], part) for name, part in properties.items() if name in value)
    if isinstance(value, list) and "items" in schema:
        return all(fits(one, schema["items"]) for one in value)
    return True


def length(samples: Sequence[Sample], *, least: int = 1, most: int, buffer: int = 0) -> Scores:
    """Give 0 to answers of `least` to `most` tokens and -1 to others.

    Args:
        samples: answers.
        least, most: tokens.
        buffer: the last tokens before `most`, over which the reward falls from 0 to -1 evenly
            (DAPO's soft punishment of overlong answers, arXiv:2503.14476, eq. 13).
    """

    def score(n: int) -> float:
        if not least <= n <= most:
            return -1.0
        return -max(0, n - (most - buffer)) / buffer if buffer else 0.0

    return [score(s.tokens) for s in samples]


def model(samples: Sequence[Sample], *, path: str, batch: int = 64) -> Scores:
    """Score each question with its answer by a reward model (configs/posttrain/reward.py).

    Args:
        samples: answers; a question that is a text is a user's message.
        path: of the reward model: anything that `llm.load` opens.
        batch: answers scored at once.
    """
    chats = []
    for sample in samples:
        text = isinstance(sample.prompt, str)
        asked = [{"role": "user", "content": sample.prompt}] if text else list(sample.prompt)
        chats.append([*asked, {"role": "assistant", "content": sample.text}])
    return _loaded(path).scores(chats, batch)


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> Any:
    import llm

    return llm.load(path)


REWARDS: dict[str, str] = {
    "model": "llm.posttrain.rewards:model",
    "exact": "llm.posttrain.rewards:exact",
    "number": "llm.posttrain.rewards:number",
    "units": "llm.posttrain.rewards:units",
    "pattern": "llm.posttrain.rewards:pattern",
    "json": "llm.posttrain.rewards:json_schema",
    "length": "llm.posttrain.rewards:length",
}


class Judge(NamedTuple):
    """The rewards of a config, ready to call.

    Attributes:
        functions: name -> (samples) -> scores.
        weights: name -> its part in the sum; 0 only watches.
    """

    functions: dict[str, Callable[[Sequence[Sample]], Scores]]
    weights: dict[str, float]

    def each(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Return every reward of every sample: float64 [B], NaN where it cannot judge.

        Raises:
            ConfigError: a function returned another number of scores.
        """
        found = {}
        for name, function in self.functions.items():
            scores = [math.nan if s is None else float(s) for s in function(samples)]
            if len(scores) != len(samples):
                raise ConfigError(
                    f"The reward {name!r} gave {len(scores)} scores for {len(samples)} samples.",
                    "Return one number (or None) per sample, in their order.",
                )
            found[name] = np.asarray(scores, np.float64)
        return found

    def total(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the weighted sum [B] of what could be judged; NaN where nothing could."""
        parts = np.stack([scores[name] for name, weight in self.weights.items() if weight])
        weights = np.asarray([weight for weight in self.weights.values() if weight])[:, None]
        known = ~np.isnan(parts)
        total = np.where(known, parts * weights, 0.0).sum(axis=0)
        return np.where(known.any(axis=0), total, np.nan)


def judge(section: Mapping[str, Mapping[str, Any]]) -> Judge:
    """Build the rewards of a config: {name: {"weight": 1.0, "function": name, options…}}.

    Raises:
        ConfigError: no reward counts, one is unknown, or it does not take an option.
    """
    functions: dict[str, Callable[[Sequence[Sample]], Scores]] = {}
    weights = {}
    for name, part in section.items():
        options = dict(part)
        chosen = options.pop("function", name)
        weights[name] = float(options.pop("weight", 1.0))
        spec = chosen if ":" in chosen else configs.choose(chosen, REWARDS, "reward")
        try:
            function = configs.resolve_builder(spec)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"config.rollout.rewards.{name}.function={chosen!r} cannot be imported: {error}.",
                "Give 'module:function' of a module that Python finds.",
            ) from error
        bound = configs.bind(function, options, f"rollout.rewards.{name}", given=("samples",))
        functions[name] = functools.partial(function, **bound)
    if not any(weights.values()):
        raise ConfigError(
            "config.rollout.rewards has nothing that counts.",
            "Name at least one reward with a weight, such as {'exact': {'weight': 1.0}}.",
        )
    return Judge(functions, weights)

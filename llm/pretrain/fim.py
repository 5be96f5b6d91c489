# SPDX-License-Identifier: Apache-2.0
"""Fill in the middle: documents rearranged so that a decoder learns to write between two texts.

Source: Bavarian et al. (2022). See `denoise` for what a transform of rows is.
"""

from typing import Any

import numpy as np

from llm.errors import ConfigError
from llm.pretrain.denoise import Rows, Transform, each_row, named_token

# The tokens before prefix, suffix and middle, under the names that tokenizers have for them.
SENTINELS = (
    ("<|fim_prefix|>", "<fim_prefix>", "<PRE>", "▁<PRE>"),
    ("<|fim_suffix|>", "<fim_suffix>", "<SUF>", "▁<SUF>"),
    ("<|fim_middle|>", "<fim_middle>", "<MID>", "▁<MID>"),
)
UNITS = ("character", "token")
_TRIES = 8  # of making a text of whole characters that fits where it stood

Parts = tuple[list[int], list[int], list[int]]


def fim(
    tokenizer: Any,
    *,
    length: int,
    rate: float = 0.5,
    spm_rate: float = 0.5,
    unit: str = "character",
    vocab_size: int = 0,
    seed: int = 0,
) -> Transform:
    """Rearrange a share of the documents of each row, within the place they have in it (§4).

    A document is cut at two uniform places into prefix, middle and suffix, and becomes
        PSM: [start] <PRE> prefix <SUF> suffix <MID> middle [end]
        SPM: [start] <PRE> <SUF> suffix <MID> prefix middle [end]   (variant 2 of the paper)
    Every token is learned, as in the paper. Its last tokens, as many as the three names take, are
    left off, so that rows keep their length; a middle always ends with the end token.

    Args:
        tokenizer: names the three tokens; cuts between characters also need its text.
        length: of the rows; not needed here, as the model's vocab_size.
        rate: share of the documents rearranged.
        spm_rate: share of those in the order SPM.
        unit: where cuts may fall: between "character"s (the parts are then tokenised apart, as a
            user's will be) or between "token"s.
        seed: of the draws.

    Raises:
        ConfigError: a rate is no share, the unit is unknown, or the tokenizer lacks the tokens.
    """
    del length, vocab_size
    for name, share in (("rate", rate), ("spm_rate", spm_rate)):
        if not 0 <= share <= 1:
            raise ConfigError(f"data.corruption.{name} is {share}.", "Use a share from 0 to 1.")
    if unit not in UNITS:
        raise ConfigError(f"data.corruption.unit is {unit!r}.", f"Choose from: {', '.join(UNITS)}.")
    names = [named_token(tokenizer, choices) for choices in SENTINELS]

    def rearrange(row: Rows, rng: np.random.Generator) -> Rows:
        row = {name: values.copy() for name, values in row.items()}
        for segment in np.unique(row["segments"][row["segments"] > 0]):
            place = np.flatnonzero(row["segments"] == segment)
            chosen, other_way = rng.random(2) < (rate, spm_rate)
            start = int(row["tokens"][place[0]])
            body = [int(t) for t in row["tokens"][place[1:]]]
            room = len(place) - 4  # start and three names go in beside it, the end comes last
            parts = None
            if chosen and room > 0:
                parts = _cut(tokenizer, body, room, unit, rng)
            if parts is not None:
                whole = [start, *_ordered(parts, names, bool(other_way)), tokenizer.eos_id]
                _put(row, place, whole)
        return row

    return each_row(rearrange, seed)


def _ordered(parts: Parts, names: list[int], suffix_first: bool) -> list[int]:
    prefix, middle, suffix = parts
    before, after, between = names
    if suffix_first:
        return [before, after, *suffix, between, *prefix, *middle]
    return [before, *prefix, after, *suffix, between, *middle]


def _put(row: Rows, place: np.ndarray, whole: list[int]) -> None:
    """Write a sequence's inputs and targets into a document's place; what is over is padding."""
    used, spare = place[: len(whole) - 1], place[len(whole) - 1 :]
    row["tokens"][used], row["targets"][used], row["weights"][used] = whole[:-1], whole[1:], 1
    for name in ("tokens", "targets", "weights", "segments", "positions"):
        row[name][spare] = 0


def _cut(
    tokenizer: Any, body: list[int], room: int, unit: str, rng: np.random.Generator
) -> Parts | None:
    """Cut a document in three; None where its tokens are no whole text."""
    fractions = np.sort(rng.random(2))
    if unit == "token":
        body = body[:room]
        first, second = (int(f * (len(body) + 1)) for f in fractions)
        return body[:first], body[first:second], body[second:]
    kept = min(len(body), room)
    for _ in range(_TRIES):
        text = tokenizer.decode(body[:kept])
        if text.endswith("\ufffd") and kept > 1:  # cut inside a character
            kept -= 1
            continue
        if "\ufffd" in text:  # no whole text
            return None
        first, second = (int(f * (len(text) + 1)) for f in fractions)
        pieces = (text[:first], text[first:second], text[second:])
        prefix, middle, suffix = tokenizer.encode_batch(list(pieces))
        over = len(prefix) + len(middle) + len(suffix) - room
        if over <= 0:
            return prefix, middle, suffix
        kept -= over
        if kept <= 0:
            break
    return None

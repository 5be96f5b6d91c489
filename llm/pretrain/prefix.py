# SPDX-License-Identifier: Apache-2.0
"""Prefix language modelling and UL2's mixture of denoisers, as transforms of packed rows.

See `denoise` for what a transform is. Every document of a row is treated on its own. Rows for
decoders gain a field "prefix" (1 = visible to the whole document, whatever its place).
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.errors import ConfigError
from llm.pretrain.denoise import (
    Rows,
    Transform,
    decoder_side,
    each_row,
    named_token,
    random_spans,
    row_of,
    sentinel_ids,
    span_lengths,
)


def prefix_lm(tokenizer: Any, *, length: int, vocab_size: int = 0, seed: int = 0) -> Transform:
    """Let each document see a first part of itself both ways, and learn to continue it.

    The border is drawn uniformly; a position is weighted when its target lies behind the border.
    Source: Raffel et al. (2020), §3.2.3.

    Args:
        tokenizer: not needed here, as the model's vocab_size.
        length: of the rows.
        seed: of the borders.
    """
    del tokenizer, vocab_size

    def split(row: Rows, rng: np.random.Generator) -> Rows:
        prefix, weights = np.zeros(length, np.int32), row["weights"].copy()
        for place in _documents(row["segments"]):
            size = place.stop - place.start
            border = int(rng.integers(1, size)) if size > 1 else 1
            prefix[place.start : place.start + border] = 1
            weights[place.start : place.start + border - 1] = 0
        return {**row, "weights": weights, "prefix": prefix}

    return each_row(split, seed)


class Denoiser(NamedTuple):
    """One task of the mixture: its mode, mean span, share hidden, and weight in the draw."""

    mode: str  # "R" regular, "X" extreme, "S" sequential: one span, at the end
    mean_span: float
    rate: float
    weight: float = 1.0


# Tay et al. (2023), Table 1: seven denoisers, drawn evenly.
DENOISERS = (
    ("R", 3.0, 0.15),
    ("R", 8.0, 0.15),
    ("X", 3.0, 0.5),
    ("X", 8.0, 0.5),
    ("X", 64.0, 0.15),
    ("X", 64.0, 0.5),
    ("S", 0.0, 0.25),
)
MODES = {
    "R": ("[R]", "[NLU]", "<|spare_0|>"),
    "X": ("[X]", "[NLG]", "<|spare_1|>"),
    "S": ("[S]", "[S2S]", "<|spare_2|>"),
}


def ul2(
    tokenizer: Any,
    *,
    length: int,
    denoisers: Sequence[Sequence[Any]] = DENOISERS,
    decoder_only: bool = False,
    vocab_size: int = 0,
    seed: int = 0,
) -> Transform:
    """Draw a denoiser per document, name it by a mode token, and restore what it hid (UL2).

    An encoder-decoder reads `mode, text with sentinels` and writes `sentinel, span, …, end`; a
    decoder has both in one sequence, the first part as its prefix. What no longer fits into the
    fixed lengths is left out at the row's end.

    Args:
        tokenizer: names the modes, sentinels, padding and end.
        length: of the rows that come in; those that go out differ (see `ul2_lengths`).
        denoisers: (mode, mean span, rate[, weight]) of each.
        decoder_only: write rows for a decoder instead of an encoder-decoder.
        vocab_size: of the model, which must hold the sentinels; 0 is not checked.
        seed: of the noise.

    Raises:
        ConfigError: an unknown mode, a rate outside 0..1, or a tokenizer without mode tokens.
    """
    tasks = [Denoiser(*given) for given in denoisers]
    for task in tasks:
        if task.mode not in MODES or not 0 < task.rate < 1 or task.weight < 0:
            raise ConfigError(
                f"data.corruption.denoisers has {tuple(task)}.",
                f"Give (mode of {', '.join(MODES)}; mean span; rate between 0 and 1; weight).",
            )
    modes = {mode: named_token(tokenizer, MODES[mode]) for mode in {t.mode for t in tasks}}
    chances = np.array([task.weight for task in tasks]) / sum(task.weight for task in tasks)
    counts = [_spans(length, task)[0] for task in tasks]
    sentinels = sentinel_ids(tokenizer, max(counts), vocab_size)
    lengths = ul2_lengths(length, denoisers)

    def pairs(row: Rows, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for place in _documents(row["segments"]):
            task = tasks[rng.choice(len(tasks), p=chances)]
            if place.stop - place.start > 1:
                source, target = _hide(row["tokens"][place], task, sentinels, rng)
                yield np.r_[modes[task.mode], source], target

    def for_both(row: Rows, rng: np.random.Generator) -> Rows:
        made = list(pairs(row, rng))
        sources, source_numbers = _joined([source for source, _ in made])
        targets, target_numbers = _joined([target for _, target in made])
        encoder = row_of(sources[: lengths[0]], source_numbers[: lengths[0]], lengths[0])
        return {
            **{f"encoder_{name}": value for name, value in encoder.items()},
            **decoder_side(targets, target_numbers, lengths[1], tokenizer),
        }

    def for_decoder(row: Rows, rng: np.random.Generator) -> Rows:
        made = list(pairs(row, rng))
        whole = [np.r_[source, target, tokenizer.eos_id] for source, target in made]
        size = lengths[2]
        tokens, numbers = _joined([one[:-1] for one in whole])
        fields = row_of(tokens[:size], numbers[:size], size)
        inputs = [np.arange(len(s) + len(t)) for s, t in made]
        borders = [len(s) for s, _ in made]
        prefix = [i < n for i, n in zip(inputs, borders, strict=True)]
        weights = [i >= n - 1 for i, n in zip(inputs, borders, strict=True)]
        for name, parts in (
            ("targets", [one[1:] for one in whole]),
            ("weights", weights),
            ("prefix", prefix),
        ):
            flat = _joined(parts)[0][:size]
            kind = np.float32 if name == "weights" else np.int32
            fields[name] = np.pad(flat.astype(kind), (0, size - len(flat)))
        return fields

    return each_row(for_decoder if decoder_only else for_both, seed)


def ul2_lengths(length: int, denoisers: Sequence[Sequence[Any]] = DENOISERS) -> tuple[int, ...]:
    """Return what a whole row of `length` tokens may become: (encoder, decoder, both in one)."""
    encoder, decoder = [], []
    for given in denoisers:
        spans, hidden = _spans(length, Denoiser(*given))
        encoder.append(1 + length - hidden + spans)
        decoder.append(hidden + spans + 1)
    together = max(a + b - 1 for a, b in zip(encoder, decoder, strict=True))
    return max(encoder), max(decoder), together


def _spans(size: int, task: Denoiser) -> tuple[int, int]:
    """Return how many spans hide how many of a document's tokens."""
    if task.mode == "S":
        return 1, max(1, min(size - 1, round(size * task.rate)))
    spans, _, decoder = span_lengths(size, task.rate, task.mean_span)
    return spans, decoder - spans - 1


def _hide(
    tokens: np.ndarray, task: Denoiser, sentinels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a document with sentinels for its hidden spans, and those spans behind theirs."""
    spans, hidden = _spans(len(tokens), task)
    if task.mode == "S":
        masked = np.arange(len(tokens)) >= len(tokens) - hidden
    else:
        masked = random_spans(len(tokens), hidden, spans, rng)
    begins = masked & ~np.r_[False, masked[:-1]]
    number = np.cumsum(begins) - 1
    source = np.where(begins, sentinels[number], tokens)[~masked | begins]
    places = np.flatnonzero(masked)
    order = np.sort(np.r_[places * 2 + 1, np.flatnonzero(begins) * 2])  # a sentinel, then its span
    spot = order // 2
    return source, np.where(order % 2 == 1, tokens[spot], sentinels[number[spot]])


def _documents(segments: np.ndarray) -> Iterator[slice]:
    """Yield where each document of a row stands."""
    for segment in np.unique(segments[segments > 0]):
        inside = np.flatnonzero(segments == segment)
        yield slice(int(inside[0]), int(inside[-1]) + 1)


def _joined(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return arrays end to end, and the number (from 1) of each entry's array."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    numbers = [np.full(len(part), i + 1) for i, part in enumerate(parts)]
    return np.concatenate(parts), np.concatenate(numbers)

# SPDX-License-Identifier: Apache-2.0
"""Denoising objectives as transforms of packed rows: what is hidden, and what must be restored.

A transform is (rows, numbers) -> rows, where `numbers` [B] identify the draws: the noise of a row
depends on its number and the seed alone, never on the batch or the host that reads it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llm.errors import ConfigError

Rows = dict[str, np.ndarray]
Transform = Callable[[Mapping[str, np.ndarray], np.ndarray], Rows]

_HELD_OUT = 1 << 62  # held-out rows draw from numbers that no training step reaches


def generator(seed: int, number: int) -> np.random.Generator:
    """Return the source of a row's noise."""
    return np.random.Generator(np.random.Philox(key=[seed & (2**63 - 1), number]))


def mlm(
    tokenizer: Any,
    *,
    length: int,
    rate: float = 0.15,
    whole_words: bool = False,
    vocab_size: int = 0,
    seed: int = 0,
) -> Transform:
    """Hide tokens as BERT does: 80 % become the mask, 10 % a random token, 10 % stay.

    Args:
        tokenizer: names the mask token and, for whole words, where words start.
        length: of the rows; not needed here, as the model's vocab_size.
        rate: share of the tokens to restore, rounded per row to whole tokens (at least one).
        whole_words: hide all pieces of a word together.
        seed: of the noise.

    Source: Devlin et al. (2019), §3.1; whole words as in the authors' later release.
    """
    del length, vocab_size
    if not 0 < rate < 1:
        raise ConfigError(f"data.corruption.rate is {rate}.", "Use a share between 0 and 1.")
    mask = named_token(tokenizer, ("<|mask|>", "[MASK]", "<mask>"))
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(tokenizer.special_tokens.values())] = True
    plain = np.flatnonzero(~special)
    begins, ends = _word_edges(tokenizer) if whole_words else (None, None)

    def number_words(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
        if begins is None or ends is None:
            return np.arange(len(tokens))
        continues = begins[tokens[1:]] & ends[tokens[:-1]] & (segments[1:] == segments[:-1])
        return np.cumsum(np.r_[True, ~continues])

    def hide(row: Rows, rng: np.random.Generator) -> Rows:
        tokens, segments = row["tokens"], row["segments"]
        open_places = (segments > 0) & ~special[tokens]
        chosen = _choose_words(number_words(tokens, segments), open_places, rate, rng)
        action = rng.random(len(tokens))
        noisy = np.where(action < 0.8, mask, tokens)
        noisy = np.where(action >= 0.9, rng.choice(plain, len(tokens)), noisy)
        return {
            **row,
            "tokens": np.where(chosen, noisy, tokens).astype(np.int32),
            "targets": tokens.astype(np.int32),
            "weights": chosen.astype(np.float32),
        }

    return each_row(hide, seed)


def _choose_words(
    words: np.ndarray, open_places: np.ndarray, rate: float, rng: np.random.Generator
) -> np.ndarray:
    """Mark words, in random order, until `rate` of the open places are marked."""
    wanted = max(1, round(rate * open_places.sum())) if open_places.any() else 0
    candidates = rng.permutation(np.unique(words[open_places]))
    sizes = np.bincount(words[open_places], minlength=words.max(initial=0) + 1)[candidates]
    taken = candidates[np.cumsum(sizes) - sizes < wanted]
    return open_places & np.isin(words, taken)


def _word_edges(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return bool [V] twice: the token's text begins, and ends, inside a word.

    A token's text is what it adds behind a letter: alone, "the" and " the" may read the same.
    """
    size = tokenizer.vocab_size
    letter = next((i for i in range(size) if tokenizer.decode([i]).isalnum()), 0)
    before = len(tokenizer.decode([letter]))
    texts = [tokenizer.decode([letter, i])[before:] for i in range(size)]
    return np.array([t[:1].isalnum() for t in texts]), np.array([t[-1:].isalnum() for t in texts])


def named_token(tokenizer: Any, names: tuple[str, ...]) -> int:
    """Return the id of the first of these special tokens that the tokenizer has.

    Raises:
        ConfigError: it has none of them.
    """
    for name in names:
        if name in tokenizer.special_tokens:
            return int(tokenizer.special_tokens[name])
    raise ConfigError(
        f"The tokenizer has none of {', '.join(names)}.", "Train one with scripts/tokenizer.py."
    )


def sentinel_ids(tokenizer: Any, count: int, vocab_size: int = 0) -> np.ndarray:
    """Return the ids that stand for spans: `<extra_id_0>`…, else those above the tokenizer's.

    Raises:
        ConfigError: they do not fit into a model of `vocab_size` (0 = not known).
    """
    named = tokenizer.special_tokens
    ids = np.array([named.get(f"<extra_id_{i}>", tokenizer.vocab_size + i) for i in range(count)])
    if vocab_size and ids.max() >= vocab_size:
        raise ConfigError(
            f"Up to {count} spans per row need token ids up to {ids.max()}; the model has "
            f"{vocab_size}.",
            f"Set config.model.vocab_size={64 * (int(ids.max()) // 64 + 1)}, or use shorter rows.",
        )
    return ids


def each_row(hide: Callable[..., Rows], seed: int) -> Transform:
    """Return the transform that applies `hide(row, rng) -> row` to every row."""

    def transform(rows: Mapping[str, np.ndarray], numbers: np.ndarray) -> Rows:
        made = [
            hide({name: values[i] for name, values in rows.items()}, generator(seed, int(number)))
            for i, number in enumerate(numbers)
        ]
        return {name: np.stack([m[name] for m in made]) for name in made[0]}

    return transform


def span_lengths(length: int, rate: float, mean_span: float) -> tuple[int, int, int]:
    """Return (spans, encoder length, decoder length) of rows of `length` tokens.

    Every span gives one sentinel to both sides; the decoder ends with one more.
    """
    hidden = max(1, min(length - 1, round(length * rate)))
    spans = max(1, min(hidden, length - hidden, round(hidden / mean_span)))
    return spans, length - hidden + spans, hidden + spans + 1


def random_spans(length: int, hidden: int, spans: int, rng: np.random.Generator) -> np.ndarray:
    """Return bool [length]: `spans` hidden stretches of `hidden` tokens in all, each non-empty.

    Kept and hidden stretches alternate, a kept one first; both are split at random.
    Source: Raffel et al. (2020), §3.1.4.
    """

    def parts(total: int) -> np.ndarray:
        cuts = np.sort(rng.choice(total - 1, spans - 1, replace=False)) + 1
        return np.diff(np.r_[0, cuts, total])

    sizes = np.stack([parts(length - hidden), parts(hidden)], axis=1).ravel()
    return np.repeat(np.tile([False, True], spans), sizes)


def span_corruption(
    tokenizer: Any,
    *,
    length: int,
    rate: float = 0.15,
    mean_span: float = 3.0,
    vocab_size: int = 0,
    seed: int = 0,
) -> Transform:
    """Replace spans by sentinels in the encoder's input; the decoder restores them (T5).

    Packed documents keep their segment numbers on both sides, so cross-attention stays within a
    document; a span that would cross a border is cut there, and what then no longer fits into the
    fixed lengths is left out at the row's end. Sentinels are `<extra_id_0>`… where the
    tokenizer has them, else the ids just above its vocabulary.

    Args:
        tokenizer: names the sentinels, padding and end.
        length: of the rows.
        rate: share of the tokens hidden.
        mean_span: mean length of a span, in tokens.
        vocab_size: of the model, which must hold the sentinels; 0 is not checked.
        seed: of the noise.
    """
    spans, encoder_length, decoder_length = span_lengths(length, rate, mean_span)
    hidden = decoder_length - spans - 1
    slack = 2 * spans  # spans cut at borders need further sentinels
    sentinels = sentinel_ids(tokenizer, spans + slack + 1, vocab_size)

    def corrupt(row: Rows, rng: np.random.Generator) -> Rows:
        tokens, segments = row["tokens"], row["segments"]
        masked = random_spans(length, hidden, spans, rng) & (segments > 0)
        border = np.r_[True, segments[1:] != segments[:-1]]
        begins = masked & (border | ~np.r_[False, masked[:-1]])
        number = np.cumsum(begins) - 1
        begins &= number < spans + slack
        masked &= number < spans + slack
        encoder = _keep(
            np.where(begins, sentinels[np.minimum(number, spans + slack)], tokens),
            segments,
            (~masked | begins) & (segments > 0),
            encoder_length,
        )
        places = np.flatnonzero(masked)
        order = np.sort(np.r_[places * 2 + 1, np.flatnonzero(begins) * 2])  # sentinel, then tokens
        is_token = order % 2 == 1
        spot = order // 2
        target = np.where(is_token, tokens[spot], sentinels[number[spot]])
        return {
            **{f"encoder_{name}": value for name, value in encoder.items()},
            **decoder_side(target, segments[spot], decoder_length, tokenizer),
        }

    return each_row(corrupt, seed)


def _keep(tokens: np.ndarray, segments: np.ndarray, kept: np.ndarray, length: int) -> Rows:
    """Return the kept places as a row of `length`, positions counted anew in every document."""
    return row_of(tokens[kept][:length], segments[kept][:length], length)


def row_of(tokens: np.ndarray, segments: np.ndarray, length: int) -> Rows:
    """Return one side of a row, padded; positions count from 0 in every segment."""
    size = len(tokens)
    starts = (
        np.flatnonzero(np.r_[True, segments[1:] != segments[:-1]]) if size else np.zeros(0, int)
    )
    positions = np.arange(size) - np.repeat(starts, np.diff(np.r_[starts, size]))
    padding = (0, length - size)
    return {
        "tokens": np.pad(tokens, padding).astype(np.int32),
        "segments": np.pad(segments, padding).astype(np.int32),
        "positions": np.pad(positions, padding).astype(np.int32),
    }


def decoder_side(targets: np.ndarray, segments: np.ndarray, length: int, tokenizer: Any) -> Rows:
    """End every document's targets, and shift them right for the decoder's input (pad starts)."""
    pieces, groups = [], []
    for segment in np.unique(segments):
        pieces.append(np.r_[targets[segments == segment], tokenizer.eos_id])
        groups.append(np.full(len(pieces[-1]), segment))
    whole = np.concatenate(pieces)[:length] if pieces else np.zeros(0, np.int64)
    group = np.concatenate(groups)[:length] if groups else np.zeros(0, np.int64)
    row = row_of(whole, group, length)
    goal = row["tokens"]
    shifted = np.r_[tokenizer.pad_id, goal[:-1]]
    row["tokens"] = np.where(row["positions"] == 0, tokenizer.pad_id, shifted).astype(np.int32)
    weights = (row["segments"] > 0).astype(np.float32)
    return {**row, "targets": goal, "weights": weights}


class CorruptedRows:
    """Held-out rows with fixed noise: the same in every evaluation."""

    def __init__(self, rows: Any, transform: Transform):
        self.rows, self.transform = rows, transform
        # Other tokens are scored than the manifest counts: bits per byte would mean nothing.
        self.manifest = {k: v for k, v in rows.manifest.items() if k != "bytes_of_text"}

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Any) -> Rows:
        """Return the rows with their noise."""
        numbers = _HELD_OUT + np.asarray(indices, np.int64)
        return self.transform(self.rows.take(indices), numbers)


class CorruptedFeed:
    """A feed whose rows get fresh noise at every draw (as RoBERTa's do)."""

    def __init__(self, feed: Any, transform: Transform, options: Mapping[str, Any]):
        self.feed, self.transform = feed, transform
        self.fingerprint = f"{feed.fingerprint}+{sorted(options.items())}"

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.feed.datasets.values())

    def batch(self, step: int, params: Any = None) -> Rows:
        """Return this host's slice of the step's batch."""
        share = self.feed.batch_size // self.feed.host_count
        first = step * self.feed.batch_size + self.feed.host_index * share
        return self.transform(self.feed.batch(step, params), first + np.arange(share))

    def state(self) -> dict[str, Any]:
        """Return nothing: a draw is a pure function of its number."""
        return {}

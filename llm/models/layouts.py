# SPDX-License-Identifier: Apache-2.0
"""The small language of `families`: "(N {H|H|H}) D" read as reshapes, slices and transposes.

Grammar: dimensions are separated by spaces; a dimension is a letter, a group `(A B)` flattened
into one, or a concatenation `{A B|C}`, which may stand inside a group.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from llm.models.config import TransformerConfig
from llm.models.families import Row

Sizes = Mapping[str, int]


class _Layout(NamedTuple):
    """A parsed layout: per dimension its factors; a factor is a letter or a list of parts."""

    dims: tuple[tuple[str | tuple[tuple[str, ...], ...], ...], ...]


def sizes(config: TransformerConfig) -> dict[str, int]:
    """Return the size of every letter."""
    return {
        "D": config.d_model,
        "C": config.d_model,
        "N": config.n_heads,
        "K": config.n_kv_heads,
        "H": config.head_dim,
        "F": config.d_ff,
        "X": config.d_expert,
        "Z": config.n_shared_experts * config.d_expert,
        "U": 1,
        "V": config.vocab_size,
        "E": config.n_experts,
        "P": config.max_length + config.position_offset,
        "R": config.relative_buckets,
        "G": config.n_classes,
        "Y": config.token_types,
    }


def _parse(layout: str) -> _Layout:
    dims = []
    for token in re.findall(r"\([^)]*\)|\{[^}]*\}|\w", layout):
        factors: list[str | tuple[tuple[str, ...], ...]] = []
        for factor in re.findall(r"\{[^}]*\}|\w", token):
            if factor.startswith("{"):
                factors.append(tuple(tuple(part.split()) for part in factor[1:-1].split("|")))
            else:
                factors.append(factor)
        dims.append(tuple(factors))
    return _Layout(tuple(dims))


def _product(letters: tuple[str, ...], sizes: Sizes) -> int:
    return int(np.prod([sizes[letter] for letter in letters]))


def _factor_size(factor: str | tuple[tuple[str, ...], ...], sizes: Sizes) -> int:
    if isinstance(factor, str):
        return sizes[factor]
    return sum(_product(part, sizes) for part in factor)


def shape(layout: str, sizes: Sizes) -> tuple[int, ...]:
    """Return a layout's shape."""
    return tuple(
        int(np.prod([_factor_size(factor, sizes) for factor in dim])) for dim in _parse(layout).dims
    )


def stacked(row: Row, config: TransformerConfig) -> tuple[int, ...]:
    """Return the leading (layer, expert) sizes of a row's leaf."""
    lead: list[int] = []
    if "{i}" in row.theirs:
        encoder = row.ours.startswith("encoder/") and config.n_encoder_layers
        lead.append(config.n_encoder_layers if encoder else config.n_layers)
    if "{e}" in row.theirs:
        lead.append(config.n_experts)
    return tuple(lead)


def expand(row: Row, config: TransformerConfig) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield (index into the leaf, tensor name) of every layer and expert."""
    for index in itertools.product(*(range(n) for n in stacked(row, config))):
        name = row.theirs
        for mark, i in zip(("{i}", "{e}"), index, strict=False):
            name = name.replace(mark, str(i))
        yield index, name


def _plan(row: Row, sizes: Sizes) -> tuple[list[int], int, int, list[str]]:
    """Return the expanded shape, the concatenated axis (-1: none), its start, and the letters."""
    expanded: list[int] = []
    letters: list[str] = []
    axis, start = -1, 0
    for factor in itertools.chain(*_parse(row.their_layout).dims):
        if not isinstance(factor, str):
            axis = len(expanded)
            start = sum(_product(part, sizes) for part in factor[: row.pick])
            letters += factor[row.pick]
        else:
            letters.append(factor)
        expanded.append(_factor_size(factor, sizes))
    return expanded, axis, start, letters


def to_ours(array: np.ndarray, row: Row, sizes: Sizes) -> np.ndarray:
    """Turn one of their tensors into (one layer of) our leaf."""
    expanded, axis, start, letters = _plan(row, sizes)
    array = array.reshape(expanded)
    ours = row.our_layout.split()
    if axis >= 0:
        length = int(np.prod([sizes[c] for c in letters]))
        length //= int(np.prod([n for i, n in enumerate(expanded) if i != axis]))
        array = np.take(array, range(start, start + length), axis=axis)
    array = array.reshape([sizes[letter] for letter in letters])
    return array.transpose([letters.index(letter) for letter in ours])


def to_theirs(pieces: list[tuple[Row, np.ndarray]], sizes: Sizes) -> np.ndarray:
    """Join our arrays (all parts of one of their tensors) into that tensor."""
    joined = []
    axis = -1
    for row, array in sorted(pieces, key=lambda piece: piece[0].pick):
        expanded, axis, _, letters = _plan(row, sizes)
        ours = row.our_layout.split()
        array = array.transpose([ours.index(letter) for letter in letters])
        if axis >= 0:
            expanded[axis] = -1
        joined.append(array.reshape(expanded))
    whole = joined[0] if axis < 0 else np.concatenate(joined, axis=axis)
    return whole.reshape(shape(pieces[0][0].their_layout, sizes))

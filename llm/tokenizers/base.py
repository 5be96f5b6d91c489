# SPDX-License-Identifier: Apache-2.0
"""The tokenizer every stage uses: one class around a codec (the part that differs by kind)."""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from llm import files
from llm.errors import DataError
from llm.tokenizers import chat

# Ids 0..15 of every tokenizer trained here. The spares can be given a meaning later.
SPECIAL_TOKENS = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|mask|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|spare_0|>",
    "<|spare_1|>",
    "<|spare_2|>",
    "<|spare_3|>",
)
PAD, BOS, EOS, END_OF_TURN = "<pad>", "<s>", "</s>", "<|end|>"
FORMAT = 1


class Codec(NamedTuple):
    """What differs between kinds of tokenizer.

    encode_batch: plain texts -> ids; never yields a special token, whatever the text says.
    decode: ids without special tokens -> text.
    piece: id -> what it stands for, for people to read.
    files: file name -> content, all that is needed to build the codec again.
    fallback_ids: ids that stand for characters the vocabulary lacks: their single bytes, or the
        unknown token.
    encode_rendered: a rendered chat -> (ids, [start, end) characters of each id), where the codec
        has its own way to find special tokens; None: the text is cut at special tokens.
    """

    kind: str
    vocab_size: int
    encode_batch: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    piece: Callable[[int], str]
    files: dict[str, bytes]
    fallback_ids: frozenset[int] = frozenset()
    encode_rendered: Callable[[str], tuple[list[int], list[tuple[int, int]]]] | None = None


class Tokenizer:
    """Turns text and chats into token ids and back.

    Args:
        codec: the part that differs by kind.
        special_tokens: string -> id of every token that plain text can never produce.
        pad_id, bos_id, eos_id: ids; `bos_id` is None where a model has no start token.
        stop_ids: ids that end a document or a turn.
        chat_template: Jinja source; "" where chats are not supported.
    """

    def __init__(
        self,
        codec: Codec,
        special_tokens: dict[str, int],
        *,
        pad_id: int,
        bos_id: int | None,
        eos_id: int,
        stop_ids: Iterable[int] = (),
        chat_template: str = "",
    ):
        self.codec = codec
        self.kind = codec.kind
        self.vocab_size = codec.vocab_size
        self.special_tokens = dict(special_tokens)
        self.pad_id, self.bos_id, self.eos_id = pad_id, bos_id, eos_id
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((eos_id, *stop_ids)))
        self.chat_template = chat_template
        self._names = {index: name for name, index in self.special_tokens.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a plain text: special-token strings in it are ordinary characters."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of several plain texts, faster than one by one."""
        return self.codec.encode_batch([storable(text) for text in texts])

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids; special tokens are left out or written as their names.

        Ids beyond the vocabulary (a model's padded output rows) are left out.
        """
        runs: list[list[int]] = [[]]
        pieces: list[str] = []
        for index in map(int, ids):
            name = self._names.get(index)
            if name is None:
                if 0 <= index < self.vocab_size:
                    runs[-1].append(index)
            elif not skip_special:
                pieces += [self.codec.decode(runs[-1]), name]
                runs.append([])
        return "".join(pieces) + self.codec.decode(runs[-1])

    def piece(self, index: int) -> str:
        """Return what one id stands for, for people to read."""
        return self._names.get(int(index)) or self.codec.piece(int(index))

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
    ) -> Any:
        """Render a chat as one string, or as ids with `tokenize`.

        Raises:
            DataError: there is no template, or it cannot render these messages.
        """
        if tokenize:
            return self._encode_marked(self._mark(messages, add_generation_prompt, True))[0]
        return chat.render(
            self.chat_template, messages, self._template_names(), add_generation_prompt
        )

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[float]]:
        """Return the ids of a chat and their loss weights.

        Special tokens of the template become ids; the same strings inside a message are encoded as
        ordinary text, so a message cannot pose as another role. Weights are 1.0 on what the
        assistant says and on its stop token, and 0.0 elsewhere.

        Raises:
            DataError: there is no template, or it cannot render these messages.
        """
        marked = self._mark(messages, add_generation_prompt)
        ids, places = self._encode_marked(marked)
        # A token that reaches over the edge of a span belongs to it.
        weights = [
            float(any(start < high and end > low for low, high in marked.spans))
            for start, end in places
        ]
        return ids, weights

    def encode_answer(self, messages: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
        """Return ids and weights of a chat up to the end of the assistant's last words.

        What a template writes after the last stop token (a newline) is left out, so that a chat
        ends as a generated one does.

        Raises:
            DataError: there is no template, or it cannot render these messages.
        """
        ids, weights = self.encode_chat(messages)
        last = max((place for place, weight in enumerate(weights) if weight), default=len(ids) - 1)
        return ids[: last + 1], weights[: last + 1]

    def _mark(
        self, messages: Sequence[dict[str, Any]], prompt: bool, hidden_turns: bool = False
    ) -> chat.Marked:
        return chat.mark(
            self.chat_template,
            messages,
            self._template_names(),
            self.special_tokens,
            [self._names[index] for index in self.stop_ids if index in self._names],
            prompt,
            hidden_turns,
        )

    def _encode_marked(self, marked: chat.Marked) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a rendered chat, and the characters that each stands for."""
        if self.codec.encode_rendered is None or marked.hidden:
            return self._encode_parts(marked)
        return self.codec.encode_rendered(marked.text)

    def _encode_parts(self, marked: chat.Marked) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a rendered chat cut at special tokens and at the ends of weighted spans."""
        cuts = {0, len(marked.text), *(edge for span in marked.spans for edge in span)}
        special_at = {}
        for match in self._special_pattern.finditer(marked.text):
            special_at[match.start()] = self.special_tokens[match.group()]
            cuts |= {match.start(), match.end()}
        edges = sorted(cuts)
        plain = [
            chat.reveal(marked.text[low:high], marked.hidden)
            for low, high in itertools.pairwise(edges)
            if low not in special_at
        ]
        encoded = iter(self.encode_batch(plain))
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for low, high in itertools.pairwise(edges):
            part = [special_at[low]] if low in special_at else next(encoded)
            ids += part
            places += [(low, high)] * len(part)
        return ids, places

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _template_names(self) -> dict[str, str]:
        """Return the variables that chat templates expect."""
        return {
            "bos_token": self._names.get(self.bos_id, "") if self.bos_id is not None else "",
            "eos_token": self._names.get(self.eos_id, ""),
            "pad_token": self._names.get(self.pad_id, ""),
        }

    @functools.cached_property
    def hash(self) -> str:
        """Identify the mapping from text to ids; the chat template is not part of it."""
        return files.hash_json(
            {
                "kind": self.kind,
                "files": {name: files.hash_bytes(data) for name, data in self.codec.files.items()},
                "special_tokens": self.special_tokens,
                "ids": [self.pad_id, self.bos_id, self.eos_id],
            }
        )

    def save(self, directory: Any) -> None:
        """Write the codec's files and `meta.json` (last, so that a part is never opened).

        Raises:
            StorageError: the folder cannot be written.
        """
        folder = files.path(directory)
        for name, data in self.codec.files.items():
            files.write_atomic(folder / name, data)
        meta = {
            "format": FORMAT,
            "kind": self.kind,
            "hash": self.hash,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "stop_ids": list(self.stop_ids),
            "special_tokens": self.special_tokens,
            "files": sorted(self.codec.files),
            "chat_template": self.chat_template,
        }
        files.write_json(folder / "meta.json", meta)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} tokens, {self.hash[:8]})"


def ours(codec: Codec) -> Tokenizer:
    """Return a tokenizer with this project's special tokens (ids 0..15) and chat template."""
    special = {name: index for index, name in enumerate(SPECIAL_TOKENS)}
    return Tokenizer(
        codec,
        special,
        pad_id=special[PAD],
        bos_id=special[BOS],
        eos_id=special[EOS],
        stop_ids=[special[END_OF_TURN]],
        chat_template=chat.DEFAULT_TEMPLATE,
    )


def restore(codec: Codec, meta: dict[str, Any], place: str) -> Tokenizer:
    """Return the tokenizer that `meta.json` describes.

    Raises:
        DataError: a field is missing or wrong, or the files beside it are not those it was written
            with.
    """
    for key, fits in _FIELDS.items():
        if key not in meta or not fits(meta[key]):
            raise DataError(
                f"{key} in {place}/meta.json is missing or not what it must be.",
                "Restore the folder from a copy.",
            )
    tokenizer = Tokenizer(
        codec,
        meta["special_tokens"],
        pad_id=meta["pad_id"],
        bos_id=meta["bos_id"],
        eos_id=meta["eos_id"],
        stop_ids=meta["stop_ids"],
        chat_template=meta["chat_template"],
    )
    if tokenizer.hash != meta["hash"]:
        raise DataError(
            f"The tokenizer files in {place} are not the ones its meta.json was written with.",
            "Train the tokenizer again, or restore the folder from a copy.",
        )
    return tokenizer


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "special_tokens": lambda v: isinstance(v, dict) and all(map(_is_id, v.values())),
    "pad_id": _is_id,
    "bos_id": lambda v: v is None or _is_id(v),
    "eos_id": _is_id,
    "stop_ids": lambda v: isinstance(v, list) and all(map(_is_id, v)),
    "chat_template": lambda v: isinstance(v, str),
    "hash": lambda v: isinstance(v, str),
}


def storable(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates, which no UTF-8 text can hold."""
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes str, not {type(text).__name__}")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

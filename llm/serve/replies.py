# SPDX-License-Identifier: Apache-2.0
"""The shapes of answers: chat and text completions, whole and in chunks."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm.generate.requests import Piece


class Reply(NamedTuple):
    """What all parts of one answer share."""

    chat: bool
    model: str
    identity: str
    created: int
    logprobs: bool

    def head(self, chunk: bool = False) -> dict[str, Any]:
        """Return the fields that open an answer or a chunk of it."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {
            "id": self.identity,
            "object": f"{kind}.chunk" if chunk and self.chat else kind,
            "created": self.created,
            "model": self.model,
        }


def new_reply(chat: bool, model: str, logprobs: bool) -> Reply:
    """Begin an answer with an id of its own."""
    prefix = "chatcmpl-" if chat else "cmpl-"
    return Reply(chat, model, prefix + uuid.uuid4().hex, int(time.time()), logprobs)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Count the tokens of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def whole(
    reply: Reply, pieces: Sequence[Sequence[Piece]], tokenizer: Any, counts: Mapping[str, int]
) -> dict[str, Any]:
    """Return the answer of a request that is not streamed, from the pieces of each choice."""
    choices = []
    for index, parts in enumerate(pieces):
        text = "".join(part.text for part in parts)
        body = {"message": {"role": "assistant", "content": text}} if reply.chat else {"text": text}
        tokens = [t for part in parts for t in zip(part.tokens, part.logprobs, strict=True)]
        choices.append(
            {
                "index": index,
                **body,
                "finish_reason": parts[-1].reason,
                "logprobs": logprobs(reply, tokens, tokenizer),
            }
        )
    return {**reply.head(), "choices": choices, "usage": dict(counts)}


def chunk(reply: Reply, index: int, piece: Piece, first: bool, tokenizer: Any) -> dict[str, Any]:
    """Return one chunk of a stream."""
    if reply.chat:
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.text or first:
            delta["content"] = piece.text
        body: dict[str, Any] = {"delta": delta}
    else:
        body = {"text": piece.text}
    tokens = list(zip(piece.tokens, piece.logprobs, strict=True))
    choice = {
        "index": index,
        **body,
        "finish_reason": piece.reason or None,
        "logprobs": logprobs(reply, tokens, tokenizer),
    }
    return {**reply.head(chunk=True), "choices": [choice]}


def last_chunk(reply: Reply, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the chunk without choices that reports the usage."""
    return {**reply.head(chunk=True), "choices": [], "usage": dict(counts)}


def logprobs(
    reply: Reply, tokens: Sequence[tuple[int, float]], tokenizer: Any
) -> dict[str, Any] | None:
    """Return the log-probabilities of the chosen tokens, stop tokens left out; None if unasked."""
    if not reply.logprobs:
        return None
    kept = [(token, value) for token, value in tokens if token not in tokenizer.stop_ids]
    names = [tokenizer.decode([token]) for token, _ in kept]
    values = [value for _, value in kept]
    if not reply.chat:
        offsets = [sum(map(len, names[:i])) for i in range(len(names))]
        return {
            "tokens": names,
            "token_logprobs": values,
            "top_logprobs": None,
            "text_offset": offsets,
        }
    content = [
        {"token": name, "logprob": value, "bytes": list(name.encode()), "top_logprobs": []}
        for name, value in zip(names, values, strict=True)
    ]
    return {"content": content, "refusal": None}


def event(data: Mapping[str, Any]) -> bytes:
    """Write one server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"

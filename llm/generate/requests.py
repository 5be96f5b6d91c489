# SPDX-License-Identifier: Apache-2.0
"""What is asked of the engine, and what it gives back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llm.errors import ConfigError
from llm.generate.sampling import Settings
from llm.generate.text import TextStream


class Request(NamedTuple):
    """One text to generate: prompt ids, and when and how to go on.

    stop_ids end it, the last of its tokens; stop strings end it before they begin.
    seconds: after which it ends wherever it is; 0 = never.
    guess: whether guessed tokens may be tried; the text is the same either way.
    """

    tokens: Sequence[int]
    max_tokens: int
    settings: Settings = Settings()
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seconds: float = 0.0
    guess: bool = True


class Completion(NamedTuple):
    """What was generated: `tokens` include the stop token, `text` ends before any stop.

    logprobs: of each token under the unmodified model.
    reason: "stop" (a stop token or string), "length" (max_tokens reached), "time" (its seconds
        are over) or "cancelled".
    """

    tokens: list[int]
    logprobs: list[float]
    text: str
    reason: str


class Piece(NamedTuple):
    """What a stream yields: new text, its tokens, and at the end the reason ("" before)."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    reason: str


def check(request: Request, max_length: int) -> Request:
    """Return the request, or say why it cannot be served.

    Raises:
        ConfigError: nothing to continue, nothing to generate, a setting out of range, or a prompt
            that with max_tokens does not fit the model.
    """
    n = len(request.tokens)
    if n == 0:
        raise ConfigError("The prompt is empty.", "Give at least one token to continue.")
    if request.max_tokens < 1:
        raise ConfigError(f"max_tokens={request.max_tokens} asks for nothing.", "Use 1 or more.")
    if n + request.max_tokens > max_length:
        room = max_length - n
        raise ConfigError(
            f"The prompt has {n} tokens; with max_tokens={request.max_tokens} it exceeds the "
            f"model's {max_length} positions.",
            f"Use max_tokens <= {room}." if room > 0 else "Shorten the prompt.",
        )
    request.settings.validate()
    return request


class Collector:
    """Gathers one request's tokens and turns them into text up to its stop."""

    def __init__(self, request: Request, tokenizer: Any):
        self._request = request
        self._text = None
        if tokenizer is not None:
            self._text = TextStream(tokenizer, request.tokens, request.stop)
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.reason = ""

    def add(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Piece:
        """Take new tokens, as far as the text goes on."""
        start, pieces = len(self._tokens), []
        for token, logprob in zip(tokens, logprobs, strict=True):
            self._tokens.append(int(token))
            self._logprobs.append(float(logprob))
            if token in self._request.stop_ids:
                self.reason = "stop"
            elif self._text is not None:
                pieces.append(self._text.push(token))
                self.reason = "stop" if self._text.stopped else ""
            if not self.reason and len(self._tokens) >= self._request.max_tokens:
                self.reason = "length"
            if self.reason:
                break
        return self._piece(start, pieces)

    def end(self, reason: str) -> Piece:
        """End the text where it is."""
        self.reason = reason
        return self._piece(len(self._tokens), [])

    def _piece(self, start: int, pieces: list[str]) -> Piece:
        if self.reason and self._text is not None:
            pieces.append(self._text.finish())
        text = "".join(pieces)
        self._pieces.append(text)
        return Piece(text, self._tokens[start:], self._logprobs[start:], self.reason)

    def completion(self) -> Completion:
        """Return everything gathered."""
        return Completion(self._tokens, self._logprobs, "".join(self._pieces), self.reason)

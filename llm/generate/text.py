# SPDX-License-Identifier: Apache-2.0
"""Turn tokens into text as they arrive: whole characters only, and never past a stop string."""

from collections.abc import Sequence
from typing import Any

_UNKNOWN = "\ufffd"
_CONTEXT = 8  # prompt tokens kept in view, so that a leading space is decoded as in running text
_LONGEST_DOUBT = _CONTEXT + 3  # bytes in view that one unfinished character can spoil


class Detokenizer:
    """Decodes one token at a time into pieces that never end inside a character.

    A decoder shows an unfinished UTF-8 sequence as U+FFFD, some together with the bytes before it;
    such an ending is held back until more tokens settle it. Only a short window of tokens is
    decoded again at each step; it always begins between two characters.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()):
        self._decode = tokenizer.decode
        self._window = _prompt_window(tokenizer, prompt)
        self._emitted = len(self._decode(self._window)) if self._window else 0
        self._boundary = len(self._window)  # tokens whose text was all emitted, last time

    def push(self, token: int) -> str:
        """Add a token; return the characters that are now certain."""
        self._window.append(int(token))
        text = self._decode(self._window)
        held = len(text) - len(text.rstrip(_UNKNOWN))
        held = held if held <= _LONGEST_DOUBT else 3
        piece = text[self._emitted : len(text) - held]
        self._emitted = max(self._emitted, len(text) - held)
        if piece and not held:
            self._window = self._window[self._boundary :]
            self._boundary = len(self._window)
            self._emitted = len(self._decode(self._window))
        return piece

    def finish(self) -> str:
        """Return what was held back, as the decoder shows it."""
        text = self._decode(self._window) if self._window else ""
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece


def _prompt_window(tokenizer: Any, prompt: Sequence[int]) -> list[int]:
    """Return the end of a prompt that its continuation is decoded after.

    It starts behind the last special token (what follows one is decoded as a text of its own) and
    not inside a character.
    """
    special = set((getattr(tokenizer, "special_tokens", None) or {}).values())
    window: list[int] = []
    for token in reversed(prompt[-_CONTEXT:]):
        if int(token) in special:
            break
        window.insert(0, int(token))
    while window and tokenizer.decode(window).startswith(_UNKNOWN):
        del window[0]
    return window


class StopMatcher:
    """Passes text on up to the first stop string, holding back what may be the start of one."""

    def __init__(self, stops: Sequence[str] = ()):
        self._stops = tuple(stop for stop in stops if stop)
        self._pending = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add text; return the part that no stop string can claim any more."""
        if self.stopped:
            return ""
        self._pending += piece
        found = [at for at in map(self._pending.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            safe, self._pending = self._pending[: min(found)], ""
            return safe
        held = max((_overlap(self._pending, stop) for stop in self._stops), default=0)
        cut = len(self._pending) - held
        safe, self._pending = self._pending[:cut], self._pending[cut:]
        return safe

    def finish(self) -> str:
        """Return what was held back: the text ended without completing a stop string."""
        rest, self._pending = self._pending, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of text that begins the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


class TextStream:
    """Detokenises one request and watches for its stop strings."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = (), stops: Sequence[str] = ()):
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._matcher = StopMatcher(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been completed."""
        return self._matcher.stopped

    def push(self, token: int) -> str:
        """Add a token; return the text that is now final (often empty, for a moment)."""
        return self._matcher.push(self._detokenizer.push(token))

    def finish(self) -> str:
        """End the text; return what was held back, unless a stop string ended it before."""
        rest = self._matcher.push(self._detokenizer.finish())
        return rest + self._matcher.finish()

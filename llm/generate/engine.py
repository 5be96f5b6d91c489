# SPDX-License-Identifier: Apache-2.0
"""The engine that generates every text: requests come and go while others run.

    engine = Engine(model, params, tokenizer)
    handle = engine.submit(Request(tokens, max_tokens=100))
    for piece in handle: ...          # or `async for piece in handle`, or handle.result()

Nothing runs by itself: whoever waits for a piece calls `step`, which moves every text on: drops
those that were cancelled, lets waiting ones begin in their order, reads a piece of a prompt, and
takes a few steps of decoding for all that are ready. A text depends on its own request only.
"""

import asyncio
import collections
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm.generate import sampling
from llm.generate.buckets import parts, power_of_two, row_count
from llm.generate.guessing import Rows
from llm.generate.prefix_cache import PagePool, page_names
from llm.generate.programs import SHAPES, STEPS, WIDE, Chosen, Device, Programs
from llm.generate.requests import Collector, Completion, Piece, Request, check
from llm.models.paged import BLOCK, PAGE, page_bytes

_PIECE_SECONDS = 0.05  # between two pieces of a stream
_BUSY_STEPS = 4  # of decoding while prompts wait to be read
_STOP_IDS, _BIASES = 8, 16  # per row, at least: their number is part of a program's shape
_FIRST_PAGES = 64


class QueueFull(Exception):
    """As many requests as allowed wait or run."""


class Options(NamedTuple):
    """How an engine is built.

    rows: texts decoded together at most; best a power of two.
    memory: bytes of keys and values that the pool may grow to; one request always fits.
    cache: their type: "" = the compute dtype, "int8" = a quarter of float32's memory.
    share: whether prompts that begin alike share what was read.
    guess: whether tokens are guessed ahead; texts are the same, single streams faster.
    narrow: whether the model's own weights in 8 bits, held besides, guess where a text decodes
        alone and does not repeat itself; None = where it pays: a large dense model on a CPU.
    queue: requests waiting or running at most; 0 = any number.
    whole: whether the pool has its full size from the start, so that it never grows.
    steady: whether every step has all `rows`, used or not: one program to compile, not one for
        every power of two.
    """

    rows: int = 16
    memory: int = 1 << 30
    cache: str = ""
    share: bool = True
    guess: bool = True
    narrow: bool | None = None
    queue: int = 0
    whole: bool = False
    steady: bool = False


class Handle:
    """A submitted request: iterate over its pieces, wait for its result, or cancel it."""

    def __init__(self, engine: "Engine", request: Request, deliver: Any, tokenizer: Any):
        self.request = request
        self._engine = engine
        self._deliver: Callable[[Piece], None] | None = deliver
        self._pieces: collections.deque[Piece] = collections.deque()
        self._collector = Collector(request, tokenizer)
        self.streams = deliver is not None
        self.cancelled = False
        self.until = time.monotonic() + request.seconds if request.seconds else float("inf")

    @property
    def reason(self) -> str:
        """Why the text ended; "" before."""
        return self._collector.reason

    def cancel(self) -> None:
        """End the text at the next step."""
        self.cancelled = True

    def give(self, piece: Piece) -> None:
        """Hand a piece on; called by the engine."""
        if self._deliver is not None:
            self._deliver(piece)
        else:
            self._pieces.append(piece)

    def add(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Take new tokens; called by the engine."""
        self.give(self._collector.add(tokens, logprobs))

    def end(self, reason: str) -> None:
        """End where it is; called by the engine."""
        self.give(self._collector.end(reason))

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces; leaving early cancels the request."""
        self.streams = True
        try:
            while self._pieces or not self.reason:
                while self._pieces:
                    yield self._pieces.popleft()
                if not self.reason:
                    self._engine.step()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield the pieces; leaving early cancels the request."""
        self.streams = True
        try:
            while self._pieces or not self.reason:
                while self._pieces:
                    yield self._pieces.popleft()
                if not self.reason:
                    await asyncio.to_thread(self._engine.step)
        finally:
            self.cancel()

    def result(self) -> Completion:
        """Run the engine until the text has ended, and return it whole."""
        while not self.reason:
            self._engine.step()
        self._pieces.clear()
        return self._collector.completion()


class _Text:
    """A request that has pages: its place in the reading of the prompt, or in decoding."""

    def __init__(self, handle: Handle, pages: list[int], width: int, share: bool):
        self.handle = handle
        self.pages = pages
        tokens = handle.request.tokens
        self.history = np.zeros(width * PAGE, np.int32)
        self.history[: len(tokens)] = tokens
        self.table = np.zeros(width, np.int32)
        self.position = len(tokens) - 1
        self.left = handle.request.max_tokens
        self.read = 0  # tokens of the prompt that are in the pages; the last one is decoded
        self.names = page_names(tokens[:-1]) if share else []
        self.lay()

    @property
    def ready(self) -> bool:
        return self.read >= len(self.handle.request.tokens) - 1

    def lay(self) -> None:
        self.table[: len(self.pages)] = self.pages

    def take(self, tokens: np.ndarray) -> None:
        n = len(tokens)
        self.history[self.position + 1 : self.position + 1 + n] = tokens
        self.position += n
        self.left -= n


class Engine:
    """Generates texts with one model.

    Args:
        model, params: the decoder and its parameters.
        tokenizer: makes the text and finds stop strings; None leaves the texts empty.
        mesh: over which the parameters are laid, or None.
        options: see `Options`.
        draft: (model, params) of a small decoder with the same vocabulary that guesses tokens.
        device: runs the programs; for tests. Default: `Programs`.
    """

    def __init__(
        self,
        model: Any,
        params: Any,
        tokenizer: Any = None,
        mesh: Any = None,
        options: Options | None = None,
        draft: Any = None,
        device: Device | None = None,
    ):
        config = model.config
        options = options or Options()
        self._make = lambda p: Programs(
            model, p, mesh, options.cache, draft, options.guess and options.narrow
        )
        self._device = device or self._make(params)
        self._tokenizer = tokenizer
        self._options = options
        self._parts = parts(mesh)
        self._longest = config.max_length
        self._width = -(-config.max_length // (PAGE * BLOCK)) * BLOCK
        each = page_bytes(config, options.cache)
        full = row_count(options.rows, self._parts) * self._width
        self._most_pages = min(full, max(self._width, options.memory // each))
        self._pool = PagePool()
        self._waiting: collections.deque[Handle] = collections.deque()
        self._texts: list[_Text] = []
        self._lock = threading.RLock()
        self._seconds_per_step = 0.0
        self._settings: tuple[Any, Any] = (None, None)
        self.counts: collections.Counter[str] = collections.Counter()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are read or decoded."""
        return len(self._texts)

    def submit(self, request: Request, deliver: Callable[[Piece], None] | None = None) -> Handle:
        """Put a request in the line.

        Args:
            deliver: called with each piece by whoever calls `step`; without it the handle keeps
                them.

        Raises:
            ConfigError: see `check`.
            QueueFull: `options.queue` requests wait or run.
        """
        return self.submit_all([request], None if deliver is None else [deliver])[0]

    def submit_all(
        self,
        requests: Sequence[Request],
        deliver: Sequence[Callable[[Piece], None]] | None = None,
    ) -> list[Handle]:
        """Put several requests in the line, all or none; see `submit`."""
        calls: Sequence[Any] = deliver or [None] * len(requests)
        handles = [
            Handle(self, check(request, self._longest), call, self._tokenizer)
            for request, call in zip(requests, calls, strict=True)
        ]
        most = self._options.queue
        if most and self.waiting + self.running + len(handles) > most:
            raise QueueFull
        self._waiting.extend(handles)
        return handles

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Generate the continuations of any number of requests, in their order."""
        handles = self.submit_all(requests)
        try:
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:  # those that an interruption left
                handle.cancel()

    def step(self) -> bool:
        """Move every text on; return whether any is left."""
        with self._lock:
            self._drop()
            self._admit()
            self._read_prompts()
            self._decode()
            return bool(self._texts or self._waiting)

    def set_params(self, params: Any) -> None:
        """Go on with other weights; prompts read before are forgotten. No text may be running."""
        with self._lock:
            self._device = self._make(params)
            self._reset()

    def fail(self, reason: str = "cancelled") -> None:
        """End all texts and start afresh, as after an error of the device."""
        with self._lock:
            for handle in [*(text.handle for text in self._texts), *self._waiting]:
                handle.end(reason)
            self._waiting.clear()
            self._texts.clear()
            self._reset()

    def _reset(self) -> None:
        self._pool = PagePool()
        self._device.clear()

    def warm_up(self) -> None:
        """Compile every program at the pool's full size."""
        with self._lock:
            if self._pool.count < self._most_pages:
                self._device.grow(self._most_pages)
                self._pool.grow(self._most_pages)
            for size in SHAPES:
                self._device.read(np.zeros(size, np.int32), 0, 0, np.zeros(self._width, np.int32))
            counts = {self._row_count(n) for n in range(1, self._options.rows + 1)}
            for R in sorted(counts):
                self._device.decode(self._rows([], R), 1)

    def _drop(self) -> None:
        """End what was cancelled or is late."""
        now = time.monotonic()
        for handle in list(self._waiting):
            if reason := _over(handle, now):
                self._waiting.remove(handle)
                handle.end(reason)
        for text in list(self._texts):
            if reason := _over(text.handle, now):
                self._release(text)
                text.handle.end(reason)

    def _release(self, text: _Text) -> None:
        self._texts.remove(text)
        self._pool.give_back(text.pages)

    def _admit(self) -> None:
        """Let requests begin in their order, as far as there is room: none overtakes another."""
        while self._waiting and len(self._texts) < self._options.rows:
            request = self._waiting[0].request
            need = -(-(len(request.tokens) + request.max_tokens) // PAGE)
            if need > self._pool.available and not self._grow(need):
                return
            handle = self._waiting.popleft()
            pages = self._pool.take(need)
            self._texts.append(_Text(handle, pages, self._width, self._options.share))

    def _grow(self, need: int) -> bool:
        """Make room for `need` pages if the pool may grow so far."""
        wanted = self._pool.count + need - self._pool.available
        if self._options.whole:
            wanted = max(wanted, self._most_pages)
        count = min(max(power_of_two(wanted), _FIRST_PAGES), self._most_pages)
        if count < wanted:
            return False
        self._device.grow(count)
        self._pool.grow(count)
        return True

    def _read_prompts(self) -> None:
        """Read up to the largest piece's tokens of prompts, the oldest first."""
        budget = SHAPES[-1]
        for text in self._texts:
            while budget > 0 and not text.ready:
                if not self._share(text):
                    budget -= self._read(text)

    def _share(self, text: _Text) -> bool:
        """Use another text's page where the next one has been read before."""
        page = text.read // PAGE
        if text.read % PAGE or page >= len(text.names):
            return False
        found = self._pool.share(text.names[page])
        if found is None:
            return False
        self._pool.give_back([text.pages[page]])
        text.pages[page] = found
        text.lay()
        text.read += PAGE
        self.counts["shared"] += PAGE
        return True

    def _read(self, text: _Text) -> int:
        """Read one piece of a prompt: whole pages first, then what is left."""
        rest = len(text.handle.request.tokens) - 1 - text.read
        whole = [size for size in SHAPES if size <= rest and size % PAGE == 0]
        size = whole[-1] if whole else next(size for size in SHAPES if size >= rest)
        real = min(size, rest)
        tokens = np.zeros(size, np.int32)
        tokens[:real] = text.history[text.read : text.read + real]
        self._device.read(tokens, text.read, real, text.table)
        first = text.read // PAGE
        text.read += real
        for page in range(first, min(text.read // PAGE, len(text.names))):
            self._pool.publish(text.names[page], text.pages[page])
        self.counts["read"] += real
        return size

    def _decode(self) -> None:
        ready = [text for text in self._texts if text.ready]
        if not ready:
            return
        started = time.perf_counter()
        rows = self._rows(ready, self._row_count(len(ready)))
        chosen = self._device.decode(rows, self._steps(ready))
        elapsed = time.perf_counter() - started
        self._seconds_per_step = elapsed / max(1, chosen.steps)
        self.counts["steps"] += chosen.steps
        self._hand_out(ready, chosen)

    def _hand_out(self, ready: list[_Text], chosen: Chosen) -> None:
        for row, text in enumerate(ready):
            n = int(chosen.given[row])
            tokens = chosen.tokens[row, :n]
            text.take(tokens)
            self.counts["chosen"] += n
            text.handle.add(tokens.tolist(), chosen.logprobs[row, :n].tolist())
            if text.handle.reason:
                self._release(text)

    def _steps(self, ready: list[_Text]) -> int:
        """Return how many steps to take before the host looks again."""
        most = STEPS
        if len(ready) < len(self._texts) or self._waiting:
            most = _BUSY_STEPS
        streams = [text for text in ready if text.handle.streams]
        if any(text.left == text.handle.request.max_tokens for text in streams):
            return 1  # somebody waits for a first word
        if streams and self._seconds_per_step:
            most = min(most, int(_PIECE_SECONDS / self._seconds_per_step))
        return max(1, most)

    def _row_count(self, ready: int) -> int:
        """Return of how many rows a step has: one, or at least as many as it is wide."""
        if self._options.steady:
            ready = self._options.rows
        return row_count(1 if ready == 1 else max(ready, WIDE), self._parts)

    def _rows(self, ready: list[_Text], R: int) -> Rows:
        stops = [text.handle.request.stop_ids for text in ready]
        stop_ids = np.full((R, power_of_two(max([_STOP_IDS, *map(len, stops)]))), -1, np.int32)
        for row, ids in enumerate(stops):
            stop_ids[row, : len(ids)] = ids
        position = np.zeros(R, np.int32)
        position[: len(ready)] = [text.position for text in ready]
        history = np.zeros((R, self._width * PAGE), np.int32)
        table = np.zeros((R, self._width), np.int32)
        for row, text in enumerate(ready):
            history[row], table[row] = text.history, text.table
        left = np.zeros(R, np.int32)
        left[: len(ready)] = [text.left for text in ready]
        guess = np.zeros(R, bool)
        guess[: len(ready)] = [self._options.guess and t.handle.request.guess for t in ready]
        return Rows(
            table=table,
            token=np.take_along_axis(history, position[:, None], axis=1)[:, 0],
            position=position,
            left=left,
            history=history,
            guess=guess,
            stop_ids=stop_ids,
            settings=self._sampling(ready, R),
        )

    def _sampling(self, ready: list[_Text], R: int) -> sampling.Rows:
        """Return the rows' settings, made anew only when the rows change."""
        key = (R, *ready)
        if self._settings[0] != key:
            settings = [text.handle.request.settings for text in ready]
            spare = [sampling.Settings()] * (R - len(ready))
            self._settings = key, sampling.rows([*settings, *spare], _BIASES)
        return self._settings[1]


def _over(handle: Handle, now: float) -> str:
    if handle.cancelled:
        return "cancelled"
    return "time" if now > handle.until else ""

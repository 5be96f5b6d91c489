# SPDX-License-Identifier: Apache-2.0
"""From a parsed request to running jobs, and from their pieces back to the handler."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from llm.errors import UserError
from llm.generate.requests import Piece, Request
from llm.generate.sampling import Settings as Sampling
from llm.generate.sampling import bias_of
from llm.serve import errors, replies
from llm.serve.errors import ApiError
from llm.serve.guard import RUN, Scope
from llm.serve.schema import ChatRequest, Common, CompletionRequest
from llm.serve.worker import Closed, Failed, Job, QueueFull

COMPLETION_TOKENS = 16  # of /v1/completions where no number is given, as in OpenAI's interface


class Run:
    """The jobs of one HTTP request.

    Args:
        service: the server's shared parts.
        body: the request.
        requests: one generation per choice.
        started: `time.perf_counter()` when the request came.
    """

    def __init__(self, service: Any, body: Common, requests: Sequence[Request], started: float):
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[int, Piece | Failed]] = asyncio.Queue()
        self._metrics = service.metrics
        self._started = started
        self._generated = 0
        self._left = self._closed = False
        prompts = requests[:: max(1, body.n or 1)]
        self._prompt_tokens = sum(len(request.tokens) for request in prompts)
        chat = isinstance(body, ChatRequest)
        wants = body.logprobs if isinstance(body, ChatRequest | CompletionRequest) else None
        logprobs = wants is True if chat else wants is not None
        self.reply = replies.new_reply(chat, service.settings.model_name, logprobs)
        self.include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.jobs = [Job(r, self._receiver(index)) for index, r in enumerate(requests)]

    def _receiver(self, index: int) -> Callable[[Piece | Failed], None]:
        def deliver(piece: Piece | Failed) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._arrived.put_nowait, (index, piece))

        return deliver

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (choice, piece) until every choice has ended.

        Raises:
            ApiError: the model failed, or the client has left.
        """
        open_jobs = len(self.jobs)
        while open_jobs:
            index, piece = await self._arrived.get()
            if isinstance(piece, Failed):
                raise ApiError(499 if self._left else 500, piece.message, code="failed")
            if not self._generated:
                self._metrics.first_token.observe(time.perf_counter() - self._started)
            self._generated += len(piece.tokens)
            open_jobs -= bool(piece.reason)
            yield index, piece
        self._metrics.duration.observe(time.perf_counter() - self._started)

    def usage(self) -> dict[str, int]:
        """Count the tokens so far."""
        return replies.usage(self._prompt_tokens, self._generated)

    def leave(self) -> None:
        """Note that the client has left, and end the wait."""
        self._left = True
        self._arrived.put_nowait((0, Failed("The client left.")))

    def close(self) -> None:
        """Cancel what still runs and count the tokens; once."""
        if self._closed:
            return
        self._closed = True
        for job in self.jobs:
            job.cancel()
        self._metrics.prompt_tokens.inc(self._prompt_tokens)
        self._metrics.generated_tokens.inc(self._generated)
        if self._left:
            self._metrics.cancelled.inc()


async def begin(service: Any, body: Common, scope: Scope, started: float) -> Run:
    """Turn a request into jobs and put them in the line; `Guard` closes the run at the end.

    Raises:
        ApiError: 400 for what cannot be served, 429 for a full line, 503 while shutting down.
    """
    requests = await asyncio.to_thread(make_requests, service.lm, body, service.settings)
    if service.draining:
        raise errors.draining()
    run = Run(service, body, requests, started)
    scope[RUN] = run
    try:
        service.worker.submit(run.jobs)
    except QueueFull:
        raise errors.overloaded(service.settings.retry_after) from None
    except Closed:
        raise errors.draining() from None
    return run


def make_requests(lm: Any, body: Common, settings: Any) -> list[Request]:
    """Return one generation per choice: every prompt `n` times, with seeds that differ.

    Raises:
        ApiError: 400, naming what is wrong.
    """
    n = body.n or 1
    prompts = _prompts(lm, body, settings.max_choices)
    if n * len(prompts) > settings.max_choices:
        raise ApiError(
            400, f"At most {settings.max_choices} choices are given at a time.", "n", "too_many"
        )
    made: list[Request] = []
    seed = secrets.randbits(32) if body.seed is None else body.seed
    sampling = _sampling(body, lm.config.vocab_size)
    for prompt in prompts:
        limit = _limit(body, len(prompt), lm.config.max_length, settings.max_tokens)
        for _ in range(n):
            mine = sampling._replace(seed=(seed + len(made)) % 2**32)
            made.append(Request(prompt, limit, mine, tuple(lm.tokenizer.stop_ids), body.stops()))
    return made


def _prompts(lm: Any, body: Common, most: int) -> list[list[int]]:
    """Return the token ids of each prompt."""
    if isinstance(body, ChatRequest):
        messages = [message.plain() for message in body.messages]
        try:
            return [lm.encode_prompt(messages)]
        except UserError as error:
            raise ApiError(400, error.problem, "messages", "invalid_messages") from None
    assert isinstance(body, CompletionRequest)
    given = body.prompts()
    if len(given) > most:
        raise ApiError(400, f"At most {most} prompts are taken at a time.", "prompt", "too_many")
    made = [lm.encode_prompt(one) if isinstance(one, str) else one for one in given]
    for prompt in made:
        if not prompt:
            raise ApiError(400, "The prompt is empty.", "prompt", "empty_prompt")
        if max(prompt) >= lm.config.vocab_size:
            raise ApiError(400, "A token id is not in the vocabulary.", "prompt", "bad_token")
    return made


def _limit(body: Common, length: int, context: int, default: int) -> int:
    """Return the tokens to generate; what does not fit is refused, never cut."""
    if isinstance(body, ChatRequest):
        wanted = body.limit()
        usual = default
    else:
        wanted, usual = body.max_tokens, COMPLETION_TOKENS
    room = context - length
    if room < 1 or (wanted is not None and wanted > room):
        asked = "" if wanted is None else f" and max_tokens={wanted}"
        raise ApiError(
            400,
            f"The prompt has {length} tokens{asked}; the model's context is {context} tokens.",
            "messages" if isinstance(body, ChatRequest) else "prompt",
            "context_length_exceeded",
        )
    return min(usual, room) if wanted is None else wanted


def _sampling(body: Common, vocab_size: int) -> Sampling:
    bias = {}
    for token, value in (body.logit_bias or {}).items():
        if not token.isascii() or not token.isdigit() or int(token[:12]) >= vocab_size:
            raise ApiError(400, "logit_bias has a key that is no token id.", "logit_bias", "bad_id")
        bias[int(token)] = value
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=bias_of(bias),
    )

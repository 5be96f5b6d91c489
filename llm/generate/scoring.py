# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of continuations, by the rules of EleutherAI's lm-evaluation-harness.

Requests are packed into batches by length; those with a long context are scored one by one, and
read what they share (as the choices of a question do) once. Which way a request goes, and so its
value, depends on itself only.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError
from llm.generate.buckets import bucket, check_decodes, count_program, layout, parts, row_count
from llm.generate.prefix_cache import PagePool, page_names
from llm.generate.programs import Programs
from llm.generate.sampling import token_logprob
from llm.models.attention import platform
from llm.models.paged import BLOCK, PAGE

# Rows times length of one batch, padding included. From 4,096 on XLA's CPU backend sums products in
# another order, so that values would feel their company (by 6e-5 in 50).
BATCH_TOKENS, CPU_BATCH_TOKENS = 8192, 2048
MAX_BATCH = 128
# Of padded length. Below 48 positions XLA's CPU backend multiplies matrices in another order, so a
# row alone would differ from one in company (by 3e-5 in 50, measured with SmolLM2-135M).
_SMALLEST = 48
_LONG = 256  # tokens of context from which on reading it once is worth going one by one
_SLICE = 256  # positions whose logits over the vocabulary are held at once


class Scored(NamedTuple):
    """The sum of a continuation's log-probabilities, and whether greedy decoding would give it."""

    logprob: float
    is_greedy: bool


class Window(NamedTuple):
    """Token ids to score given those before them; `context` is never empty."""

    context: list[int]
    continuation: list[int]


def encode_pair(tokenizer: Any, context: str, continuation: str) -> Window:
    """Encode a context and its continuation as one text, then cut.

    Spaces that end the context move to the continuation; an empty context becomes the token that
    starts a text, which is not repeated where the continuation begins with it.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    prefix = prefix_id(tokenizer)
    if not stripped:
        ids = tokenizer.encode(continuation)
        if ids[:1] == [prefix] and len(ids) > 1:
            return Window(ids[:1], ids[1:])
        return Window([prefix], ids)
    whole, head = tokenizer.encode_batch([stripped + continuation, stripped])
    if not head:
        return Window([prefix], whole)
    return Window(head, whole[len(head) :])


def prefix_id(tokenizer: Any) -> int:
    """Return the token that starts a text: the beginning-of-text one, else end-of-text."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def rolling_windows(tokens: Sequence[int], prefix: int, max_length: int) -> Iterator[Window]:
    """Cut a document so that every token is scored once, with as much context as fits.

    The first window predicts up to max_length tokens after the prefix token; each later one scores
    up to max_length more given at least one token before them, and as many as fit.
    """
    first = min(max_length, len(tokens))
    if not first:
        return
    yield Window([prefix], list(tokens[:first]))
    done = first
    while done < len(tokens):
        end = min(done + max_length, len(tokens))
        start = max(0, end - max_length - 1)
        yield Window(list(tokens[start:done]), list(tokens[done:end]))
        done = end


def score(
    model: Any,
    params: Any,
    windows: Sequence[Window],
    mesh: Any = None,
    batch_tokens: int = 0,
    max_batch: int = MAX_BATCH,
) -> list[Scored]:
    """Score windows in any order and number, in batches of similar length.

    Contexts are cut on the left to fit the model. A continuation of no tokens scores 0.

    Args:
        batch_tokens: rows times length of one batch at most; 0 = what suits the backend.
        max_batch: rows at most.

    Raises:
        ConfigError: a continuation is longer than the model.
    """
    check_decodes(mesh)
    batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if platform() == "cpu" else BATCH_TOKENS)
    longest = model.config.max_length
    rows = [_Row.of(window, longest) for window in windows]
    whole = model.config.prefix_lm  # contexts see themselves both ways: no piece stands alone
    long = [i for i, row in enumerate(rows) if row.shared >= _LONG and not whole]
    scored = dict(zip(long, _score_long(model, params, [rows[i] for i in long], mesh), strict=True))
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        if i in scored:
            continue
        # A row's padded length is its own, whatever it shares a batch with: so are its sums.
        T = bucket(max(1, len(row.inputs)), _SMALLEST, longest)
        by_length.setdefault(T, []).append(i)
    for T, members in sorted(by_length.items(), reverse=True):
        most = max(1, min(max_batch, batch_tokens // T))
        for start in range(0, len(members), most):
            group = members[start : start + most]
            values = _score_batch(model, params, [rows[i] for i in group], T, mesh)
            scored |= dict(zip(group, values, strict=True))
    return [scored[i] for i in range(len(windows))]


class _Row(NamedTuple):
    inputs: np.ndarray  # [t]
    targets: np.ndarray  # [n], of the last n inputs

    @property
    def shared(self) -> int:
        """How many tokens come before the first that is scored."""
        return len(self.inputs) - len(self.targets)

    @classmethod
    def of(cls, window: Window, longest: int) -> "_Row":
        n = len(window.continuation)
        if n > longest:
            raise ConfigError(
                f"A continuation has {n} tokens; the model has {longest} positions.",
                "Shorten it, or score it with loglikelihood_rolling.",
            )
        ids = np.asarray([*window.context, *window.continuation][-(longest + 1) :], np.int32)
        return cls(ids[:-1], ids[len(ids) - n :])


def _score_long(model: Any, params: Any, rows: Sequence[_Row], mesh: Any) -> list[Scored]:
    """Score texts one by one, in an order that keeps equal beginnings together."""
    if not rows:
        return []
    programs, pool = Programs(model, params, mesh), PagePool()
    width = -(-model.config.max_length // (PAGE * BLOCK)) * BLOCK
    programs.grow(2 * width)
    pool.grow(2 * width)
    scored: dict[int, Scored] = {}
    for i in sorted(range(len(rows)), key=lambda i: rows[i].inputs.tolist()):
        row = rows[i]
        names = page_names(row.inputs[: row.shared])
        table = np.zeros(width, np.int32)
        pages = _read_pages(programs, pool, row.inputs, names, table)
        more = pool.take(-(-len(row.inputs) // PAGE) - len(pages))
        table[len(pages) : len(pages) + len(more)] = more
        scored[i] = _score_rest(programs, row, len(pages) * PAGE, table)
        pool.give_back([*pages, *more])
    return [scored[i] for i in range(len(rows))]


def _read_pages(
    programs: Programs, pool: PagePool, inputs: np.ndarray, names: list[bytes], table: np.ndarray
) -> list[int]:
    """Fill the named pages, or find them filled; note them in the table and return them."""
    pages: list[int] = []
    for name in names:
        if (page := pool.share(name)) is None:
            break
        pages.append(page)
    table[: len(pages)] = pages
    while len(pages) < len(names):
        count = BLOCK if len(names) - len(pages) >= BLOCK else 1
        start = len(pages) * PAGE
        pages += pool.take(count)
        table[: len(pages)] = pages
        size = count * PAGE
        programs.read(inputs[start : start + size], start, size, table)
    for name, page in zip(names, pages, strict=True):
        pool.publish(name, page)
    return pages


def _score_rest(programs: Programs, row: _Row, start: int, table: np.ndarray) -> Scored:
    """Score the targets from the page-aligned position `start` on."""
    wanted = np.zeros(len(row.inputs), np.int32)
    wanted[row.shared :] = row.targets
    total, greedy = 0.0, True
    while start < len(row.inputs):
        rest = len(row.inputs) - start
        size = PAGE if rest <= PAGE else BLOCK * PAGE
        real = min(size, rest)
        tokens, targets = np.zeros((2, size), np.int32)
        tokens[:real] = row.inputs[start : start + real]
        targets[:real] = wanted[start : start + real]
        logprobs, hits = programs.score(tokens, start, real, table, targets)
        counts = slice(max(0, row.shared - start), real)
        total += float(np.sum(logprobs[counts], dtype=np.float64))
        greedy &= bool(np.all(hits[counts]))
        start += real
    return Scored(total, greedy)


def _score_batch(model: Any, params: Any, rows: Sequence[_Row], T: int, mesh: Any) -> list[Scored]:
    B = row_count(len(rows), parts(mesh))
    tokens, segments, targets = np.zeros((3, B, T), np.int32)
    counts = [len(row.targets) for row in rows]
    places = np.zeros(B * T, np.int32)
    total = 0
    for i, row in enumerate(rows):
        t, n = len(row.inputs), len(row.targets)
        tokens[i, :t], segments[i, :t] = row.inputs, 1
        targets[i, t - n : t] = row.targets
        places[total : total + n] = i * T + np.arange(t - n, t)
        total += n
    contexts = np.arange(T) < np.array([[row.shared + 1] for row in rows] + [[0]] * (B - len(rows)))
    prefix = jnp.asarray(contexts) if model.config.prefix_lm else None
    with layout(mesh):
        logprobs, greedy = _score(
            model, params, *map(jnp.asarray, (tokens, segments, targets, places)), total, prefix
        )
    cuts = np.cumsum(counts)[:-1]
    sums = np.split(np.asarray(logprobs, np.float64)[:total], cuts)
    hits = np.split(np.asarray(greedy)[:total], cuts)
    return [Scored(float(s.sum()), bool(h.all())) for s, h in zip(sums, hits, strict=True)]


@functools.partial(jax.jit, static_argnames=("model",))
def _score(
    model: Any,
    params: Any,
    tokens: jax.Array,  # [B, T]
    segments: jax.Array,  # [B, T]
    targets: jax.Array,  # [B, T]
    places: jax.Array,  # [B * T], flat positions to score; the first `total` count
    total: jax.Array,
    prefix: jax.Array | None = None,  # [B, T] bool: contexts, where they see themselves both ways
) -> tuple[jax.Array, jax.Array]:
    """Return log-probability and "is the argmax" of the targets at places, [B * T] each.

    Logits exist for one slice of places at a time: scoring a few tokens of a long context costs
    neither the time nor the memory of the whole.
    """
    count_program("score")
    hidden = model.apply(
        {"params": params}, tokens, segments=segments, prefix=prefix, method="hidden"
    )
    hidden = hidden.reshape(-1, hidden.shape[-1])
    wanted = targets.reshape(-1)[places]
    B = tokens.shape[0]
    n = min(B * -(-_SLICE // B), places.shape[0])  # a multiple of B divides over a mesh as B does
    padded = -(-places.shape[0] // n) * n
    places = jnp.pad(places, (0, padded - places.shape[0]))
    wanted = jnp.pad(wanted, (0, padded - wanted.shape[0]))

    def more(carry: Any) -> jax.Array:
        return carry[0] * n < total

    def take(carry: Any) -> Any:
        i, logprobs, greedy = carry
        at = jax.lax.dynamic_slice(places, (i * n,), (n,))
        target = jax.lax.dynamic_slice(wanted, (i * n,), (n,))
        logits = model.apply({"params": params}, hidden[at][:, None], method="head")[:, 0]
        hit = jnp.argmax(logits, axis=-1) == target
        return (
            i + 1,
            jax.lax.dynamic_update_slice(logprobs, token_logprob(logits, target), (i * n,)),
            jax.lax.dynamic_update_slice(greedy, hit, (i * n,)),
        )

    start = (0, jnp.zeros(padded, jnp.float32), jnp.zeros(padded, bool))
    _, logprobs, greedy = jax.lax.while_loop(more, take, start)
    return logprobs, greedy


def loglikelihood(
    model: Any,
    params: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    mesh: Any = None,
    **options: int,
) -> list[tuple[float, bool]]:
    """Return (sum of log-probabilities, is greedy) of each (context, continuation)."""
    windows = [encode_pair(tokenizer, context, text) for context, text in pairs]
    return [(s.logprob, s.is_greedy) for s in score(model, params, windows, mesh, **options)]


def loglikelihood_rolling(
    model: Any,
    params: Any,
    tokenizer: Any,
    texts: Sequence[str],
    mesh: Any = None,
    **options: int,
) -> list[float]:
    """Return the log-probability of each whole text; texts do not see one another."""
    prefix, longest = prefix_id(tokenizer), model.config.max_length
    cut = [list(rolling_windows(ids, prefix, longest)) for ids in tokenizer.encode_batch(texts)]
    flat = iter(score(model, params, [w for windows in cut for w in windows], mesh, **options))
    return [sum(next(flat).logprob for _ in windows) for windows in cut]

# SPDX-License-Identifier: Apache-2.0
"""Chats as text: rendering them, and finding what the assistant said in the result."""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llm.errors import DataError
from llm.tokenizers.template import Budget, render

DEFAULT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('the role must be system, user or assistant, not ' ~ message['role']) -}}
{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>' ~ message['content'] ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


class Marked(NamedTuple):
    """A rendered chat.

    text: the rendering, with special-token strings of the messages replaced by `hidden` characters.
    spans: [start, end) of what the assistant says, stop token included, in characters of `text`.
    hidden: stand-in character -> the string it stands for.
    """

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str]


def mark(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    special_tokens: Iterable[str],
    stop_tokens: Sequence[str],
    add_generation_prompt: bool = False,
    hidden_turns: bool = False,
) -> Marked:
    """Render messages and find what the assistant says.

    What the assistant says is what a model would have to write after the generation prompt, up to
    and including the last stop token of its turn.

    Args:
        hidden_turns: accept a template that does not show an assistant's words as they were
            written (some leave out the thinking of earlier turns); such a turn has no span.

    Raises:
        DataError: the template cannot render these messages, or hides an assistant's words.
    """
    safe, hidden = _hide(messages, special_tokens)
    make = functools.partial(render, template, variables=variables, budget=Budget())
    text = make(safe, add_generation_prompt=add_generation_prompt)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(safe):
        if message.get("role") != "assistant":
            continue
        start = -1
        if index:
            before = make(safe[:index], add_generation_prompt=True)
            start = len(before) if text.startswith(before) else -1
        whole = make(safe[: index + 1]) if index + 1 < len(safe) else text
        end = len(whole) if text.startswith(whole) else -1
        if index + 1 == len(safe) and add_generation_prompt:
            end = -1
        if start < 0 or end < start:
            found = _find(text, message, spans[-1][1] if spans else 0, stop_tokens)
            if found is None and hidden_turns:
                continue
            if found is None:
                raise DataError(
                    "The chat template does not show an assistant message as it was written.",
                    "Use a template that keeps it, or remove the message.",
                )
            start, end = found
        spans.append((start, _through_stop(text, start, end, stop_tokens)))
    return Marked(text, spans, hidden)


def reveal(text: str, hidden: Mapping[str, str]) -> str:
    """Put back the strings that stand-in characters stand for."""
    for stand_in, original in hidden.items():
        text = text.replace(stand_in, original)
    return text


def _hide(
    messages: Sequence[Mapping[str, Any]], special_tokens: Iterable[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Replace special-token strings in messages by characters that occur nowhere in them."""
    everything = json.dumps(list(messages), ensure_ascii=False, default=str)
    found = [
        name for name in special_tokens if json.dumps(name, ensure_ascii=False)[1:-1] in everything
    ]
    if not found:
        return [dict(message) for message in messages], {}
    unused = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in everything)
    # Longest first: a token that is part of another must not cut it.
    hidden = {next(unused): name for name in sorted(found, key=len, reverse=True)}

    def replace(value: Any) -> Any:
        if isinstance(value, str):
            for stand_in, name in hidden.items():
                value = value.replace(name, stand_in)
            return value
        if isinstance(value, Mapping):
            return {key: replace(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [replace(item) for item in value]
        return value

    return [replace(message) for message in messages], hidden


def _find(
    text: str, message: Mapping[str, Any], low: int, stop_tokens: Sequence[str]
) -> tuple[int, int] | None:
    """Find a message's words in a rendering whose prefixes differ from shorter renderings."""
    content = message.get("content")
    words = content.strip() if isinstance(content, str) else ""
    start = text.find(words, low) if words else -1
    if start < 0:
        return None
    end = start + len(words)
    after = re.compile(r"\s*(?:" + "|".join(map(re.escape, stop_tokens)) + ")")
    stop = after.match(text, end) if stop_tokens else None
    return start, stop.end() if stop else end


def _through_stop(text: str, start: int, end: int, stop_tokens: Sequence[str]) -> int:
    """End a span with its last stop token; what a template adds after it is not the assistant's."""
    ends = [text.rfind(token, start, end) + len(token) for token in stop_tokens if token]
    found = [
        place
        for place, token in zip(ends, (token for token in stop_tokens if token), strict=True)
        if place >= start + len(token)
    ]
    return max(found, default=end)

# SPDX-License-Identifier: Apache-2.0
"""Chat templates: rendering them safely, and finding what the assistant said in the result.

Templates come with downloaded models, so they are treated as untrusted: they run in Jinja's
immutable sandbox, with a budget for time, loop turns and output size.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes, sandbox
from jinja2.ext import Extension

from llm.errors import DataError

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

MAX_TEMPLATE = 200_000  # characters
MAX_OUTPUT = 16_000_000  # characters
MAX_TURNS = 2_000_000  # loop turns and macro calls in one rendering
MAX_ITEMS = 500_000  # values in one nested list or dict that is written
MAX_SECONDS = 5.0
MAX_WIDTH = 100_000  # of padding, indenting and repeating
FILTERS = (
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
)
_WIDTH_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs")


class Marked(NamedTuple):
    """A rendered chat.

    text: the rendering, with special-token strings of the messages replaced by `hidden` characters.
    spans: [start, end) of what the assistant says, stop token included, in characters of `text`.
    hidden: stand-in character -> the string it stands for.
    """

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str]


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    add_generation_prompt: bool = False,
) -> str:
    """Render messages with a Jinja chat template.

    Args:
        template: the Jinja source.
        messages: dicts with "role" and "content".
        variables: further names for the template (bos_token, eos_token, …).

    Raises:
        DataError: there is no template, it refuses the messages, or it exceeds its budget.
    """
    if not template:
        raise DataError(
            "This tokenizer has no chat template.",
            "Use a tokenizer with one, or send plain text instead of messages.",
        )
    if not messages:
        raise DataError("A chat has no messages.", "Give at least one message.")
    budget = _Budget()
    try:
        compiled = _compile(template)
        names = {**variables, "messages": list(messages), "_budget": budget}
        names["add_generation_prompt"] = add_generation_prompt
        pieces: list[str] = []
        size = 0
        for piece in compiled.generate(names):
            size += len(piece)
            budget.check(size)
            pieces.append(piece)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _refusal(str(error) or type(error).__name__) from error
    except (RecursionError, MemoryError, AttributeError) as error:
        raise _refusal(type(error).__name__) from error
    return "".join(pieces)


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
    make = functools.partial(render, template, variables=variables)
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


class _Budget:
    """Counts what a rendering may use; raises a template error when it is spent."""

    def __init__(self) -> None:
        self.turns = 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> str:
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise jinja2.TemplateRuntimeError(f"more than {MAX_TURNS} loop turns")
        if self.turns % 256 == 0:
            self.check(0)
        return ""

    def check(self, size: int) -> None:
        if size > MAX_OUTPUT:
            raise jinja2.TemplateRuntimeError(f"more than {MAX_OUTPUT} characters")
        if time.monotonic() > self.deadline:
            raise jinja2.TemplateRuntimeError(f"more than {MAX_SECONDS:g} seconds")


class _Generation(Extension):
    """Accept the `{% generation %}` marks that some templates put around the assistant's words."""

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_Generation.tags = {"generation"}


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox with a budget for loops, macros, and anything that grows."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        for loop in source.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_limited", [], [], None, None, lineno=loop.lineno)
        for macro in source.find_all(nodes.Macro):
            tick = nodes.Filter(nodes.Const(0), "_tick", [], [], None, None, lineno=macro.lineno)
            macro.body.insert(0, nodes.Output([tick], lineno=macro.lineno))
        wrapped: set[int] = set()
        for parent in [source, *source.find_all(nodes.Node)]:
            _limit_concatenation(parent, wrapped)
        nodes.Node.set_environment(source, self)
        return super()._generate(source, *args, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and _product_size(left, right) > MAX_WIDTH):
            raise sandbox.SecurityError(f"the operator {operator} is limited")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            raise sandbox.SecurityError("formatting with % is not allowed")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **options: Any) -> Any:
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if name in ("format", "format_map"):  # the sandbox wraps these: they have no __self__
            raise sandbox.SecurityError(f"str.{name} is not allowed")
        if isinstance(text, str):
            args = _check_method(text, name, args)
        return super().call(context, obj, *args, **options)


def _limit_concatenation(parent: nodes.Node, wrapped: set[int]) -> None:
    """Route every `a ~ b` below a node through the filter that checks its size."""
    for name, child in list(parent.iter_fields()):
        children = child if isinstance(child, list) else [child]
        for index, item in enumerate(children):
            if not isinstance(item, nodes.Concat) or id(item) in wrapped:
                continue
            wrapped.add(id(item))
            parts = nodes.List(item.nodes, lineno=item.lineno)
            limited = nodes.Filter(parts, "_concat", [], [], None, None, lineno=item.lineno)
            if isinstance(child, list):
                child[index] = limited
            else:
                setattr(parent, name, limited)


def _check_method(text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a call of a string method whose result could be huge."""
    if name == "translate" or (name in _WIDTH_METHODS and any(_too_wide(item) for item in args)):
        raise sandbox.SecurityError(f"str.{name} is limited")
    if name == "replace" and len(args) > 1:
        _check_size(len(text) + text.count(str(args[0])) * len(str(args[1])))
    if name == "join" and args:
        items = list(args[0])
        _check_size(sum(map(len, items)) + len(text) * len(items))
        return (items, *args[1:])
    return args


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT:
        raise sandbox.SecurityError(f"more than {MAX_OUTPUT} characters")


def _written(value: Any) -> Any:
    """Refuse a nested value whose text would be huge; what Jinja does before it writes a value."""
    waiting, size, count = [value], 0, 0
    while waiting:
        item = waiting.pop()
        size += len(item) if isinstance(item, str) else 1
        count += 1
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            waiting += item
        _check_size(size)
        if count + len(waiting) > MAX_ITEMS:
            raise sandbox.SecurityError(f"more than {MAX_ITEMS} values")
    return value


def _concat(items: Sequence[Any]) -> str:
    texts = [str(_written(item)) for item in items]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _join(items: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
    chosen = [item[attribute] if attribute is not None else item for item in items]
    _check_size(len(separator) * len(chosen))
    return separator.join([str(item) for item in _written(chosen)])


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = str(_written(text))
    _check_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _string(value: Any) -> str:
    return str(_written(value))


def _product_size(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    sizes = [len(item) if hasattr(item, "__len__") else abs(int(item)) for item in (left, right)]
    return sizes[0] * sizes[1]


def _too_wide(value: Any) -> bool:
    return isinstance(value, int) and value > MAX_WIDTH


@functools.lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    if len(template) > MAX_TEMPLATE:
        raise jinja2.TemplateError(f"it is longer than {MAX_TEMPLATE} characters")
    return _environment().from_string(template)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_written,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    filters: dict[str, Callable] = {name: environment.filters[name] for name in FILTERS}
    filters |= {"tojson": _to_json, "indent": _indent, "join": _join, "replace": _replace}
    filters |= {"string": _string, "_limited": _limited, "_tick": _tick, "_concat": _concat}
    environment.filters = filters
    environment.globals = {
        "range": sandbox.safe_range,
        "dict": dict,
        "namespace": environment.globals["namespace"],
        "raise_exception": _raise,
        "strftime_now": _now,
    }
    return environment


@jinja2.pass_context
def _limited(context: Any, items: Iterable[Any]) -> Iterator[Any]:
    budget = context["_budget"]
    for item in items:
        budget.tick()
        yield item


@jinja2.pass_context
def _tick(context: Any, value: Any) -> str:
    return context["_budget"].tick()


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if _too_wide(width) or width * text.count("\n") > MAX_OUTPUT:
        raise sandbox.SecurityError("indent is limited")
    lines = text.split("\n")
    pad = " " * width
    rest = [pad + line if line or blank else line for line in lines[1:]]
    return "\n".join([pad + lines[0] if first else lines[0], *rest])


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = (separators[0], separators[1]) if separators else None
    width = min(indent, 32) if indent is not None else None
    return json.dumps(
        _written(value),
        ensure_ascii=ensure_ascii,
        indent=width,
        separators=pair,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _refusal(reason: str) -> DataError:
    return DataError(
        f"The chat template cannot render these messages: {reason[:300]}.",
        "Check the roles and their order, or the template in the tokenizer's files.",
    )

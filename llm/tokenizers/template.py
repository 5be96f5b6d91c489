# SPDX-License-Identifier: Apache-2.0
"""Rendering chat templates safely.

Templates come with downloaded models, so they are treated as untrusted: they run in Jinja's
immutable sandbox, with a budget for time, loop turns, output, and whatever they make in memory.
"""

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, sandbox
from jinja2.ext import Extension

from llm.errors import DataError

MAX_TEMPLATE = 65_536  # characters
MAX_OUTPUT = 16_000_000  # characters
MAX_MADE = 64_000_000  # characters of all strings that a rendering makes, and its lists' weight
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
_ITEM = 32  # what an item of a list weighs, in characters
_WIDTH_METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs")


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    add_generation_prompt: bool = False,
    budget: "Budget | None" = None,
) -> str:
    """Render messages with a Jinja chat template.

    Args:
        template: the Jinja source.
        messages: dicts with "role" and "content".
        variables: further names for the template (bos_token, eos_token, …).
        budget: shared by several renderings; its own by default.

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
    budget = budget or Budget()
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


class Budget:
    """Counts what renderings may use; raises a template error when it is spent."""

    def __init__(self) -> None:
        self.turns = self.made = 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def tick(self) -> str:
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise jinja2.TemplateRuntimeError(f"more than {MAX_TURNS} loop turns")
        if self.turns % 256 == 0:
            self.check(0)
        return ""

    def spend(self, value: Any) -> Any:
        """Count a string or list that was made, and return it."""
        if isinstance(value, str | bytes):
            self.made += len(value)
        elif hasattr(value, "__len__"):
            self.made += _ITEM * len(value)
        if self.made > MAX_MADE:
            raise jinja2.TemplateRuntimeError(f"more than {MAX_MADE} characters are made")
        return value

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
            _limit_growth(parent, wrapped)
        nodes.Node.set_environment(source, self)
        return super()._generate(source, *args, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and _product_size(left, right) > MAX_WIDTH):
            raise sandbox.SecurityError(f"the operator {operator} is limited")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            raise sandbox.SecurityError("formatting with % is not allowed")
        return context["_budget"].spend(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **options: Any) -> Any:
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if name in ("format", "format_map"):  # the sandbox wraps these: they have no __self__
            raise sandbox.SecurityError(f"str.{name} is not allowed")
        if isinstance(text, str):
            args = _check_method(text, name, args)
        return context["_budget"].spend(super().call(context, obj, *args, **options))


def _limit_growth(parent: nodes.Node, wrapped: set[int]) -> None:
    """Route what makes strings below a node (`a ~ b`, slices, plain text) through a check."""
    for name, child in list(parent.iter_fields()):
        children = child if isinstance(child, list) else [child]
        for index, item in enumerate(children):
            limited = _limited_form(item)
            if limited is None or id(item) in wrapped:
                continue
            wrapped.add(id(item))
            if isinstance(child, list):
                child[index] = limited
            else:
                setattr(parent, name, limited)


def _limited_form(item: Any) -> nodes.Node | None:
    """Return what a node becomes; None where it may stay."""
    if isinstance(item, nodes.Concat):
        parts = nodes.List(item.nodes, lineno=item.lineno)
        return nodes.Filter(parts, "_concat", [], [], None, None, lineno=item.lineno)
    if isinstance(item, nodes.Getitem) and isinstance(item.arg, nodes.Slice):
        return nodes.Filter(item, "_same", [], [], None, None, lineno=item.lineno)
    if isinstance(item, nodes.TemplateData):  # as a constant it is counted when it is written
        return nodes.Const(item.data, lineno=item.lineno)
    return None


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


@jinja2.pass_context
def _finalize(context: Any, value: Any) -> Any:
    """Count what is written, also into blocks whose text is caught."""
    return context["_budget"].spend(_written(value))


def _counted(function: Callable) -> Callable:
    """Make a filter count what it returns; `jinja_pass_arg` says what Jinja hands it first."""
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def run(context: Any, *args: Any, **options: Any) -> Any:
        first = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        given = (first[passed], *args) if passed else args
        return context["_budget"].spend(function(*given, **options))

    return run


def _same(value: Any) -> Any:
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
        finalize=_finalize,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    filters: dict[str, Callable] = {name: environment.filters[name] for name in FILTERS}
    filters |= {"tojson": _to_json, "indent": _indent, "join": _join, "replace": _replace}
    filters |= {"string": _string, "_concat": _concat, "_same": _same}
    environment.filters = {name: _counted(function) for name, function in filters.items()}
    environment.filters |= {"_limited": _limited, "_tick": _tick}
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

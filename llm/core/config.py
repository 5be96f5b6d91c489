# SPDX-License-Identifier: Apache-2.0
"""Config files with strict command-line overrides, checked before JAX is imported.

A config file is Python with `get_config() -> ml_collections.ConfigDict`; it is code, so run only
files you trust. Overrides are `--config.section.key=value`. Every section of a config holds the
keyword arguments of one builder function, and `bind` checks it against that function's signature.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from llm.core.redact import redact_tree
from llm.errors import ConfigError, nearest, unknown

_SUFFIX = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_TRUE = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Invocation(NamedTuple):
    """What a command line asks for."""

    config: ml_collections.ConfigDict
    config_path: str
    options: dict[str, str]


def choose(name: str, table: Mapping[str, Any], what: str) -> Any:
    """Look a name up in a visible table.

    Raises:
        ConfigError: the name is not there; names the nearest and all of them.
    """
    if name not in table:
        raise unknown(what, name, sorted(table))
    return table[name]


def load_file(location: str) -> ml_collections.ConfigDict:
    """Run a config file's `get_config`; `file.py:argument` passes it one string."""
    name, _, argument = location.partition(":")
    file = Path(name)
    if not file.is_file():
        folder = file.parent if file.parent.is_dir() else Path("configs")
        known = [str(p) for p in sorted(folder.rglob("*.py"))]
        raise ConfigError(
            f"Config file {name} does not exist.{nearest(name, known)}",
            "Give --config=configs/<stage>/<name>.py.",
        )
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.append(root)  # so that a config can import configs.common
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{name} has no get_config().", "A config file defines get_config().")
    config = module.get_config(argument) if argument else module.get_config()
    return config


def fields(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, tuple[type, Any]]:
    """Return every leaf field as {"section.key": (type, value)}."""
    found: dict[str, tuple[type, Any]] = {}
    for key in config:
        value = config[key]
        name = f"{prefix}{key}"
        if isinstance(value, ml_collections.ConfigDict):
            found.update(fields(value, f"{name}."))
        else:
            found[name] = (config.get_type(key), value)
    return found


def parse_value(text: str, kind: type, current: Any, name: str) -> Any:
    """Read a command-line value as a field's type.

    Integers and floats take 1e3, 10k, 2M, 1_000; booleans true/false; tuples `1,2` or `(1, 2)`;
    `none` empties a placeholder.

    Raises:
        ConfigError: the text is not of that type.
    """
    try:
        if text.lower() == "none" and kind is not str:
            return None
        if kind is bool:
            return _TRUE[text.lower()]
        if kind in (int, float):
            return _number(text, kind)
        if kind in (tuple, list):
            return _sequence(text, kind, current)
        if kind is str:
            return text
        return ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        if kind is type(None):
            return text
        raise ConfigError(
            f"--{name}={text} is not {_article(kind.__name__)}.",
            f"The field is {kind.__name__}; its value now is {current!r}.",
        ) from None


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _number(text: str, kind: type) -> int | float:
    body = text.replace("_", "")
    scale = _SUFFIX.get(body[-1:].lower(), 1)
    value = float(body[:-1] if scale > 1 else body) * scale
    if kind is float:
        return value
    if value != int(value):
        raise ValueError(text)
    return int(body) if scale == 1 and body.lstrip("+-").isdigit() else int(value)


def _sequence(text: str, kind: type, current: Any) -> Any:
    stripped = text.strip()
    if stripped[:1] in "([":
        items = list(ast.literal_eval(stripped))
    else:
        element = type(current[0]) if current else str
        items = [parse_value(t.strip(), element, None, "") for t in stripped.split(",") if t]
    if current and any(not isinstance(item, type(current[0])) for item in items):
        raise ValueError(text)
    return kind(items)


def apply_override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
    """Set one dotted field from its command-line text, or a section within one from a dict's.

    Raises:
        ConfigError: unknown field (with the nearest), a section, or a value of another type.
    """
    known = fields(config)
    node: Any = config
    *parents, last = name.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, ml_collections.ConfigDict) else None
    if isinstance(node, ml_collections.ConfigDict) and isinstance(
        node.get(last), ml_collections.ConfigDict
    ):
        node[last] = _section(name, text, known)
        return
    if name not in known:
        raise ConfigError(
            f"config.{name} does not exist.{_nearest_field(name, list(known))}",
            "List all fields with --help.",
        )
    kind, current = known[name]
    with node.ignore_type():  # parse_value has checked the type already
        node[last] = parse_value(text, kind, current, f"config.{name}")


def _section(name: str, text: str, known: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Read a section, such as rewards or a scorer, that is to have other fields than before."""
    inner = "." in name  # what stages read of their own sections must not go missing
    try:
        if inner:
            return ml_collections.ConfigDict(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, AttributeError):
        pass
    shown = ", ".join([key for key in known if key.startswith(f"{name}.")][:6])
    fix = f"Set one of its fields: {shown}." if shown else "It has no field."
    more = " Or give it whole: {'field': value, …}." if inner else ""
    raise ConfigError(f"config.{name} is a section.", fix + more)


def _nearest_field(name: str, known: list[str]) -> str:
    """Prefer a field of the same section; else the closest last word anywhere."""
    hint = nearest(name, known)
    if hint:
        return hint.replace("mean '", "mean 'config.")
    last = name.rsplit(".", 1)[-1]
    by_word = {field.rsplit(".", 1)[-1]: field for field in known}
    close = difflib.get_close_matches(last, list(by_word), n=1, cutoff=0.5)
    return f" Did you mean 'config.{by_word[close[0]]}'?" if close else ""


def parse(argv: Sequence[str], options: Mapping[str, str]) -> Invocation:
    """Read a command line of `--config=…`, `--config.x=y` and the stage's own options.

    Args:
        argv: arguments without the program's name; `--name value` and `--name=value` both work.
        options: the stage's own option -> its default; an option whose default is "false" is a
            switch and needs no value.

    Raises:
        ConfigError: unknown or misplaced arguments, or a wrong value.
    """
    given, overrides = dict(options), []
    waiting = list(argv)
    path = ""
    while waiting:
        name, value = _take(waiting, options)
        if name == "config":
            path = value
        elif name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        elif name in options:
            given[name] = value
        else:
            known = ["config", *options]
            raise ConfigError(
                f"Unknown option --{name}.{nearest(name, known).replace(chr(39), '')}",
                f"Options: {', '.join(f'--{k}' for k in known)}, --config.<field>=<value>.",
            )
    if not path:
        raise ConfigError("No config file is given.", "Add --config=configs/<stage>/<name>.py.")
    config = load_file(path)
    for name, text in overrides:
        apply_override(config, name, text)
    return Invocation(config, path, given)


def _take(waiting: list[str], options: Mapping[str, str]) -> tuple[str, str]:
    """Pop one `--name=value`, `--name value` or switch from the front."""
    argument = waiting.pop(0)
    if not argument.startswith("--"):
        hint = f" Did you mean --{argument.lstrip('-')}?" if "=" in argument else ""
        raise ConfigError(f"Stray argument {argument!r}.{hint}", "Options start with two dashes.")
    name, equals, value = argument[2:].partition("=")
    if equals:
        return name, value
    if options.get(name) == "false":
        return name, "true"
    if not waiting or waiting[0].startswith("--"):
        raise ConfigError(f"--{name} has no value.", f"Write --{name}=<value>.")
    return name, waiting.pop(0)


def lacking(error: AttributeError | KeyError) -> str:
    """Name the setting that a config was asked for and has not; "" where the error is another."""
    asked = traceback.extract_tb(error.__traceback__)[-1].filename
    inside = Path(asked).is_relative_to(Path(ml_collections.__file__).parent)
    return str(error).splitlines()[0].strip("'\"") if inside else ""


def resolve_builder(spec: str) -> Callable[..., Any]:
    """Import "module:function"."""
    module, _, function = spec.partition(":")
    return getattr(importlib.import_module(module), function)


def bind(
    builder: Callable[..., Any],
    section: Mapping[str, Any],
    name: str,
    given: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a section as keyword arguments of its builder, checked against the signature.

    Args:
        builder: the function (or class) that takes the section.
        section: the config section; its "name" key, if the builder has none, is left out.
        name: what to call the section in an error.
        given: parameters that the caller fills in.

    Raises:
        ConfigError: a key that the builder does not take, or a required one that is missing.
    """
    parameters = inspect.signature(builder).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {k: _plain(v) for k, v in section.items() if k != "name" or "name" in parameters}
    allowed = [p for p in parameters if p not in given]
    for key in arguments:
        if key not in allowed and not takes_any:
            raise ConfigError(
                f"config.{name}.{key} is not an option of {builder.__name__}."
                f"{nearest(key, allowed)}",
                f"Options: {', '.join(allowed)}.",
            )
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and key not in arguments and key not in given:
            raise ConfigError(
                f"config.{name}.{key} is missing.", f"Add it: {builder.__name__} needs it."
            )
    return arguments


def _plain(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
        return {key: _plain(value[key]) for key in value}
    return value


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the config as plain nested dicts, secrets replaced by "***"."""
    return redact_tree(_plain(config))


def describe(config: ml_collections.ConfigDict) -> str:
    """Return the list of fields with type and value, one a line, for `--help`."""
    lines = []
    for name, (kind, value) in fields(config).items():
        shown = json.dumps(redact_tree(value, name), default=str)
        lines.append(f"  --config.{name}={shown}  ({kind.__name__})")
    return "\n".join(lines)

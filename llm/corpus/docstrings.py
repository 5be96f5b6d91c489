# SPDX-License-Identifier: Apache-2.0
"""Read definitions, signatures and docstrings out of Python source without running it."""

import ast
import inspect
import re
import warnings
from collections.abc import Iterator

LONGEST = 2000  # characters in which a summary is looked for


def parse_source(text: str) -> ast.Module | None:
    """Parse Python source, or return None where it is not valid for this Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def signature_of(node: ast.AST, name: str) -> str:
    """Render a definition's head: "def f(a, *, b=1)", "class C(Base)" or "module m"."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        head = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{head} {node.name}({ast.unparse(node.args)}){returns}"
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    return f"module {name}"


def summary_of(docstring: str) -> str:
    """Return the first sentence of a docstring on one line, without markup."""
    # Cut, so that the patterns below stay cheap on whatever a docstring holds.
    paragraphs = re.split(r"\n\s*\n", docstring.strip()[:LONGEST])
    first = " ".join(paragraphs[0].split()) if paragraphs else ""
    # A first paragraph that only repeats the signature is followed by the real summary.
    if len(paragraphs) > 1 and re.fullmatch(r"[\w.]+\(.{0,400}\)(\s*->.{0,200})?", first):
        first = " ".join(paragraphs[1].split())
    first = re.sub(r":[a-z:]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`", r"\1", first)
    first = re.sub(r"`{1,2}([^`]+)`{1,2}_?", r"\1", first)
    match = re.search(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)[.!?](?=\s|$)", first)
    return (first[: match.end()] if match else first).strip()


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield (qualified name, node, cleaned docstring) of the module, classes and functions."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        docstring = _docstring(node)
        if docstring:
            yield name, node, docstring
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue  # what a function defines inside is not documentation for readers
        children = [
            (f"{name}.{child.name}".lstrip("."), child)
            for child in bodies(node)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        stack.extend(reversed(children))


def bodies(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield a scope's statements, including those under if and try."""
    for child in getattr(node, "body", []):
        yield child
        if isinstance(child, ast.If | ast.Try):
            yield from bodies(child)
            yield from child.orelse


def _docstring(node: ast.AST) -> str:
    body = getattr(node, "body", None)
    if not body or not isinstance(body[0], ast.Expr):
        return ""
    value = body[0].value
    if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
        return ""
    return inspect.cleandoc(value.value)

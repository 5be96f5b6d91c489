# SPDX-License-Identifier: Apache-2.0
"""Help pages in HTML, in the manner of `pydoc`, made from parsed source."""

import ast
from html import escape

from llm.corpus import docstrings

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: module help</title>
<style>pre {{ white-space: pre-wrap }}</style></head>
<body><nav><a href="index.html">index</a> | <a href="{name}.html#top">top</a></nav>
<main><h1>{name}</h1>
{body}
</main><footer><nav>Help page of {name}</nav></footer></body></html>
"""


def render_module(name: str, tree: ast.Module) -> str:
    """Render one module's help page: description, classes with methods, functions, data."""
    sections = [f"<p>{escape(ast.get_docstring(tree) or '')}</p>"]
    body = list(docstrings.bodies(tree))
    classes = [n for n in body if isinstance(n, ast.ClassDef) and _public(n.name)]
    functions = [n for n in body if isinstance(n, _FUNCTIONS) and _public(n.name)]
    if classes:
        sections.append("<h2>Classes</h2>")
        sections += [_render_class(node) for node in classes]
    if functions:
        sections.append("<h2>Functions</h2><dl>")
        sections += [_render_function(node) for node in functions]
        sections.append("</dl>")
    data = _constants(tree)
    if data:
        sections.append("<h2>Data</h2><ul>")
        sections += [f"<li>{escape(line)}</li>" for line in data]
        sections.append("</ul>")
    return PAGE.format(name=escape(name), body="\n".join(sections))


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _public(name: str) -> bool:
    return not name.startswith("_")


def _render_class(node: ast.ClassDef) -> str:
    methods = [n for n in node.body if isinstance(n, _FUNCTIONS) and _public(n.name)]
    return "\n".join(
        [
            f"<h3>{escape(docstrings.signature_of(node, node.name))}</h3>",
            _pre(ast.get_docstring(node)),
            "<dl>",
            *(_render_function(method) for method in methods),
            "</dl>",
        ]
    )


def _render_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    head = escape(docstrings.signature_of(node, node.name))
    return f"<dt>{head}</dt><dd>{_pre(ast.get_docstring(node))}</dd>"


def _pre(text: str | None) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""


def _constants(tree: ast.Module) -> list[str]:
    """List public module constants that are plain numbers or short strings."""
    lines = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [t.id for t in node.targets if isinstance(t, ast.Name) and _public(t.id)]
            value = repr(node.value.value)
            lines += [f"{name} = {value}" for name in names if len(value) < 80]
    return lines[:100]

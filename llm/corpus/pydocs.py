# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: documentation that every installation of this project already holds.

Docstrings and help pages are parsed from source files with `ast`; nothing is imported. The
packages are fixed (this project's core dependencies), so extras do not change the corpus.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.corpus import docstrings, pages
from llm.corpus.html import extract_text

# Import name -> distribution name, for the install_requires of setup.py and what these bring.
PACKAGES = {
    "absl": "absl-py",
    "contourpy": "contourpy",
    "cycler": "cycler",
    "dateutil": "python-dateutil",
    "etils": "etils",
    "flax": "flax",
    "fsspec": "fsspec",
    "huggingface_hub": "huggingface_hub",
    "humanize": "humanize",
    "jax": "jax",
    "jinja2": "Jinja2",
    "kiwisolver": "kiwisolver",
    "markdown_it": "markdown-it-py",
    "markupsafe": "MarkupSafe",
    "matplotlib": "matplotlib",
    "ml_collections": "ml_collections",
    "ml_dtypes": "ml_dtypes",
    "msgpack": "msgpack",
    "numpy": "numpy",
    "opt_einsum": "opt_einsum",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "packaging": "packaging",
    "PIL": "pillow",
    "pyparsing": "pyparsing",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sentencepiece": "sentencepiece",
    "simplejson": "simplejson",
    "tensorstore": "tensorstore",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "treescope": "treescope",
    "yaml": "PyYAML",
    "zstandard": "zstandard",
}
STDLIB = "python"
KINDS = ("docstring", "topic", "html", "licence", "metadata")
SKIP_FOLDERS = {
    "__pycache__", "site-packages", "test", "tests", "testing", "_testing", "idle_test",
    "idlelib", "lib2to3", "_vendor", "_bundled", "turtledemo", "__phello__", "pydoc_data",
}  # fmt: skip
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
MIN_DOCSTRING = 24  # characters; shorter ones ("See base class.") say nothing
FILE_LIMIT = 2_000_000  # bytes of one source file; larger ones are generated tables


def list_files(packages: list[str], kinds: list[str]) -> tuple[list[dict[str, str]], list[str]]:
    """List the files that the corpus is read from, in a fixed order.

    Returns:
        entries {"path", "package", "kind" ("python"|"topics"|"licence"|"metadata"), "module"},
        and the names of packages that are not installed.
    """
    entries: list[dict[str, str]] = []
    missing: list[str] = []
    for package in sorted(set(packages)):
        if package == STDLIB:
            entries += _stdlib_files(kinds)
            continue
        root = _package_root(package)
        if root is None:
            missing.append(package)
            continue
        if "docstring" in kinds:
            entries += _python_files(root, package, package)
        entries += _distribution_files(package, kinds)
    return entries, missing


def read_file(entry: dict[str, str], kinds: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the documents of one listed file; a file that does not parse yields nothing."""
    data = Path(entry["path"]).read_bytes()
    if len(data) > FILE_LIMIT:
        return
    text = data.decode("utf-8", errors="replace")
    licence = licence_of(entry["package"])
    for document in _DISPATCH[entry["kind"]](entry, text, kinds):
        document["licence"] = licence
        document["id"] = f"pydocs:{entry['package']}:{document['id']}"
        document["source"] = "pydocs"
        document["meta"]["package"] = entry["package"]
        module = document["meta"].get("module", document["id"])
        document["_group"] = f"{entry['package']}:{module}"  # stays on one side of the split
        yield document


@functools.cache
def licence_of(package: str) -> str:
    """Return a package's licence as its metadata states it, shortened to one line."""
    if package == STDLIB:
        return "PSF-2.0"
    try:
        meta = importlib.metadata.metadata(PACKAGES.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    stated = {key: (meta.get_all(key) or [""])[0] for key in ("License-Expression", "License")}
    for value in map(str.strip, stated.values()):
        if value and value.lower() != "unknown" and "\n" not in value and len(value) < 60:
            return _LICENCE_NAMES.get(value.lower(), value)
    for line in meta.get_all("Classifier") or []:
        if line.startswith("License ::"):
            value = line.split("::")[-1].strip()
            return _LICENCE_NAMES.get(value.lower(), value)
    whole = stated["License"].lower()
    named = [spdx for words, spdx in _LICENCE_TEXTS.items() if words in whole]
    return named[0] if named else "unknown"


_LICENCE_NAMES = {
    "mit license": "MIT",
    "mit": "MIT",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache": "Apache-2.0",
    "bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "python software foundation license": "PSF-2.0",
    "dual license": "Apache-2.0 OR BSD-3-Clause",
}
_LICENCE_TEXTS = {
    "redistribution and use in source": "BSD-3-Clause",
    "permission is hereby granted, free of charge": "MIT",
    "apache license": "Apache-2.0",
    "python software foundation": "PSF-2.0",
    "license agreement for matplotlib": "PSF-2.0",
}


def _stdlib_files(kinds: list[str]) -> list[dict[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    entries = []
    if "docstring" in kinds or "html" in kinds:
        entries += _python_files(root, "", STDLIB)
    topics = root / "pydoc_data" / "topics.py"
    if "topic" in kinds and topics.exists():
        entries.append(_entry(topics, STDLIB, "topics", "pydoc_data.topics"))
    licence = root / "LICENSE.txt"
    if "licence" in kinds and licence.exists():
        entries.append(_entry(licence, STDLIB, "licence", "LICENSE.txt"))
    return entries


def _python_files(root: Path, prefix: str, package: str) -> list[dict[str, str]]:
    """List a package's source files, without tests and vendored copies, sorted by module."""
    if root.is_file():
        return [_entry(root, package, "python", prefix)]
    found = []
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).with_suffix("").parts
        if any(part in SKIP_FOLDERS for part in parts[:-1]) or _is_test(parts[-1]):
            continue
        if any("-" in part or not part.isidentifier() for part in parts):
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        module = ".".join(filter(None, [prefix, *names]))
        if module:
            found.append(_entry(file, package, "python", module))
    return sorted(found, key=lambda entry: entry["module"])


def _is_test(stem: str) -> bool:
    return stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"


def _entry(file: Path, package: str, kind: str, module: str) -> dict[str, str]:
    return {"path": str(file), "package": package, "kind": kind, "module": module}


def _package_root(package: str) -> Path | None:
    """Find a top-level package's folder (or module file) without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _distribution_files(package: str, kinds: list[str]) -> list[dict[str, str]]:
    name = PACKAGES.get(package, package)
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    entries = []
    for file in sorted(map(str, distribution.files or [])):
        parts = Path(file).parts
        if not parts[0].endswith((".dist-info", ".egg-info")):
            continue
        located = Path(str(distribution.locate_file(file)))
        inner = "/".join(parts[1:])
        if "metadata" in kinds and inner == "METADATA":
            entries.append(_entry(located, package, "metadata", "METADATA"))
        elif "licence" in kinds and LICENCE_FILE.search(inner) and located.suffix != ".py":
            entries.append(_entry(located, package, "licence", inner))
    return [entry for entry in entries if Path(entry["path"]).is_file()]


def _from_python(entry: dict[str, str], text: str, kinds: list[str]) -> Iterator[dict[str, Any]]:
    if '"""' not in text and "'''" not in text:
        return
    tree = docstrings.parse_source(text)
    if tree is None:
        return
    module = entry["module"]
    if "docstring" in kinds:
        seen: dict[str, int] = {}
        for name, node, docstring in docstrings.definitions(tree):
            if len(docstring) < MIN_DOCSTRING:
                continue
            full = f"{module}.{name}".rstrip(".")
            seen[full] = seen.get(full, 0) + 1
            again = f"#{seen[full]}" if seen[full] > 1 else ""
            signature = docstrings.signature_of(node, module)
            yield {
                "id": f"docstring:{full}{again}",
                "text": "\n\n".join([*([full] if name else []), signature, docstring]),
                "meta": {
                    "kind": "docstring",
                    "module": module,
                    "qualname": name,
                    "signature": signature,
                    "summary": docstrings.summary_of(docstring),
                },
            }
    if "html" in kinds and entry["package"] == STDLIB and not module.startswith("_"):
        html = pages.render_module(module, tree)
        page = extract_text(html, mode="plain")
        if page.count("\n") > 8:  # a page of headings alone teaches nothing
            yield {
                "id": f"html:{module}",
                "text": page,
                "url": f"pydoc://{module}.html",
                "meta": {"kind": "html", "module": module, "html_bytes": len(html.encode())},
            }


def _from_topics(entry: dict[str, str], text: str, kinds: list[str]) -> Iterator[dict[str, Any]]:
    tree = docstrings.parse_source(text)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, body in sorted(ast.literal_eval(node.value).items()):
                yield {
                    "id": f"topic:{name}",
                    "text": body.strip(),
                    "meta": {"kind": "topic", "module": f"topic:{name}", "topic": name},
                }


def _from_licence(entry: dict[str, str], text: str, kinds: list[str]) -> Iterator[dict[str, Any]]:
    yield {"id": f"licence:{entry['module']}", "text": text.strip(), "meta": {"kind": "licence"}}


def _from_metadata(entry: dict[str, str], text: str, kinds: list[str]) -> Iterator[dict[str, Any]]:
    yield {"id": "metadata", "text": text.strip(), "meta": {"kind": "metadata"}}


_DISPATCH = {
    "python": _from_python,
    "topics": _from_topics,
    "licence": _from_licence,
    "metadata": _from_metadata,
}


def python_version() -> str:
    """Return the interpreter's version, recorded because the corpus depends on it."""
    return ".".join(map(str, sys.version_info[:3]))


def versions(packages: list[str]) -> dict[str, str]:
    """Return the installed version of each package."""
    found = {}
    for package in packages:
        if package == STDLIB:
            found[package] = python_version()
            continue
        try:
            found[package] = importlib.metadata.version(PACKAGES.get(package, package))
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found

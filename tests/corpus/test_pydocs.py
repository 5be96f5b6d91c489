# SPDX-License-Identifier: Apache-2.0
"""The embedded corpus: parsing, signatures, summaries, pages, and that nothing is imported."""

import ast
import inspect
import json.decoder
import subprocess
import sys

import pytest

from llm.corpus import docstrings, pages, pydocs, sources
from llm.corpus.html import extract_text
from llm.errors import ConfigError
from llm.text.records import ReadReport

SOURCE = '''
"""Tools for testing things in the module. More text."""
raise SystemExit("imported!")
LIMIT = 5
if True:
    def glob(pathname, *, root_dir=None, **rest) -> list[str]:
        """Return a list of paths matching a pathname pattern, e.g. a glob. Second sentence.

        More.
        """
        def inner():
            """Never shown to any reader at all."""
class Box(dict, metaclass=M):
    """A box that holds a thing inside."""
    async def open(self, key: int = 1):
        """Open the box with a :class:`~pkg.Key` and ``force``."""
def glob():
    """A second definition of the same name."""
def short():
    """Too short."""
'''


def documents(tmp_path, kinds=("docstring", "html"), package="python"):
    file = tmp_path / "tools.py"
    file.write_text(SOURCE)
    entry = {"path": str(file), "package": package, "kind": "python", "module": "pkg.tools"}
    return list(pydocs.read_file(entry, list(kinds)))


def test_docstrings_become_documents(tmp_path):
    read = documents(tmp_path, kinds=("docstring",))
    assert [d["id"].split("docstring:")[1] for d in read] == [
        "pkg.tools",
        "pkg.tools.glob",
        "pkg.tools.Box",
        "pkg.tools.Box.open",
        "pkg.tools.glob#2",
    ]
    glob = read[1]
    assert glob["meta"] == {
        "kind": "docstring",
        "module": "pkg.tools",
        "qualname": "glob",
        "signature": "def glob(pathname, *, root_dir=None, **rest) -> list[str]",
        "summary": "Return a list of paths matching a pathname pattern, e.g. a glob.",
        "package": "python",
    }
    assert glob["text"].startswith("pkg.tools.glob\n\ndef glob(pathname, *, root_dir=None, **rest)")
    assert glob["licence"] == "PSF-2.0" and glob["source"] == "pydocs"
    assert read[2]["meta"]["signature"] == "class Box(dict)"
    assert read[3]["meta"]["signature"] == "async def open(self, key: int=1)"
    assert read[3]["meta"]["summary"] == "Open the box with a pkg.Key and force."


def test_definitions_agree_with_inspect():
    tree = docstrings.parse_source(inspect.getsource(json.decoder))
    found = {name: text for name, _, text in docstrings.definitions(tree)}
    for name in ("JSONDecoder", "JSONDecoder.decode", "JSONDecodeError"):
        value = json.decoder
        for part in name.split("."):
            value = getattr(value, part)
        assert found[name] == inspect.getdoc(value)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("One line", "One line"),
        ("Wrapped\nsentence. Next.", "Wrapped sentence."),
        ("f(x, y) -> z\n\nReturn the sum.", "Return the sum."),
        ("See version 1.2 of it. Yes.", "See version 1.2 of it."),
        ("Use :func:`numpy.sin` or `cos <x>`_!", "Use numpy.sin or cos <x>!"),
        ("", ""),
    ],
)
def test_summaries(text, summary):
    assert docstrings.summary_of(text) == summary


def test_pages_hold_the_documentation_and_no_boilerplate():
    html = pages.render_module("pkg.tools", ast.parse(SOURCE))
    text = extract_text(html, mode="plain")
    assert "Return a list of paths" in text and "class Box(dict)" in text and "LIMIT = 5" in text
    assert "def glob(pathname, *, root_dir=None, **rest) -> list[str]" in text
    assert "index" not in text and "<" not in text.replace("->", "")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a<br>b</p><p>c  d\n e</p>", "a\nb\n\nc d e"),
        ("<pre>x\n  y</pre>", "x\n  y"),
        ("<script>bad()</script>good<style>p{}</style>", "good"),
        ("&lt;b&gt; &amp; &eacute; &#8364;", "<b> & é €"),
        ("<nav>menu<p>more</nav>body", "body"),
        ("<head><title>t</title><body>never closed head", "never closed head"),
        ("<p>unclosed <b>tags", "unclosed tags"),
        ("<![CDATA[x]]><!doctype><?php ?>y<", "y<"),
        (b"\xef\xbb\xbfna\xc3\xafve", "naïve"),
        (b"<meta charset='iso-8859-1'>na\xefve", "naïve"),
        (b"<meta charset='no-such'>ok \xff", "ok ÿ"),  # as browsers guess
        ("", ""),
    ],
)
def test_extraction(html, text):
    assert extract_text(html, mode="plain") == text


def test_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match="mode"):
        extract_text("", mode="magic")


def test_plan_is_the_same_every_time_and_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(pydocs.PACKAGES, "no_such_package", "no-such-package")
    options = {"packages": ("absl", "no_such_package"), "shards": 2}
    plan = sources.plan_pydocs(**options)
    assert plan == sources.plan_pydocs(**options)
    assert plan.notes["packages not installed"] == ["no_such_package"]
    read = [d for s in plan.shards for d in sources.read_pydocs(s, ReadReport())]
    assert len({d["id"] for d in read}) == len(read) > 100
    kinds = {d["meta"]["kind"] for d in read}
    assert kinds == {"docstring", "licence", "metadata"}
    with pytest.raises(ConfigError, match="Did you mean 'absl'"):
        sources.plan_pydocs(packages=("abls",))
    with pytest.raises(ConfigError, match="Did you mean 'docstring'"):
        sources.plan_pydocs(kinds=("docstrings",))


def test_topics_and_the_standard_library():
    plan = sources.plan_pydocs(packages=("python",), kinds=("topic", "licence"), shards=1)
    read = list(sources.read_pydocs(plan.shards[0], ReadReport()))
    assert any(d["id"] == "pydocs:python:topic:assert" for d in read)
    assert all(d["text"].strip() for d in read)


def test_reading_imports_no_package_it_reads():
    code = (
        "import sys; from llm.corpus import sources; from llm.text.records import ReadReport\n"
        "plan = sources.plan_pydocs(packages=('optax', 'flax'), shards=1, max_documents=50)\n"
        "assert len(list(sources.read_pydocs(plan.shards[0], ReadReport()))) == 50\n"
        "assert not {'optax', 'flax', 'jax', 'tensorflow', 'seqio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

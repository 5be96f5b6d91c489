# SPDX-License-Identifier: Apache-2.0
"""The corpus report: one self-contained HTML page, without scripts, for light and dark."""

from html import escape
from typing import Any

from llm.corpus import histograms
from llm.corpus.summary import planted_line

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea;
  --card: #f6f8fa; --page: #ffffff; --bar: #3b6fd4; --lost: #d9822b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #2d3540;
  --card: #1b2129; --page: #12161c; --bar: #6f9bf0; --lost: #e39a4e; } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem }
p { margin: .25rem 0 .75rem } .soft { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem }
.tile b { display: block; font-size: 1.25rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: .85rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: .85rem }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap }
td.bar { width: 34% ; vertical-align: middle }
.track { background: var(--card); border-radius: 3px; height: .8rem; overflow: hidden }
.fill { background: var(--bar); height: 100%; float: left } .fill.lost { background: var(--lost) }
details { border: 1px solid var(--line); border-radius: .5rem; padding: .4rem .8rem;
  margin: .4rem 0 }
summary { cursor: pointer } summary .soft { float: right }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: .6rem .8rem;
  border-radius: .4rem; font-size: .82rem; margin: .5rem 0 }
h3 { font-size: .95rem; margin: 1.25rem 0 .25rem; color: var(--soft) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-size: .82rem; overflow-wrap: anywhere }
svg { width: 100%; height: auto; display: block; border-bottom: 1px solid var(--line) }
svg .kept { fill: var(--bar) } svg .lost { fill: var(--lost) }
svg line { stroke: var(--ink); stroke-dasharray: 3 2 }
svg text { fill: var(--soft); font-size: 11px }
code { overflow-wrap: anywhere }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 0 2rem }
"""


def render(table: dict[str, Any]) -> str:
    """Return the report of a corpus summary as HTML."""
    sections = [
        _head(table),
        _funnel(table),
        _planted(table),
        _reasons(table),
        _histograms(table),
        _copies(table),
        _breakdown(table),
        _representation(table),
        _samples(table),
        _provenance(table),
    ]
    title = escape(f"Corpus report: {table['settings']['source']['name']}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def megabytes(size: float) -> str:
    """Write a number of bytes as megabytes."""
    return f"{size / 1e6:,.2f} MB"


def _bar(share: float, kind: str = "") -> str:
    width = max(0.0, min(1.0, share)) * 100
    return f'<div class="track"><div class="fill {kind}" style="width:{width:.2f}%"></div></div>'


def _table(headings: list[str], rows: list[list[str]], numeric: set[int]) -> str:
    """Lay out cells that are already HTML; columns in `numeric` are set right."""

    def cell(tag: str, i: int, content: str) -> str:
        kind = "n" if i in numeric else "bar" if content.startswith('<div class="track"') else ""
        return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", i, escape(h)) for i, h in enumerate(headings))
    body = "\n".join(
        "<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _head(table: dict[str, Any]) -> str:
    splits = table["splits"]
    tiles = [
        (f"{table['documents_read']:,}", "documents read"),
        (f"{table['documents']:,}", "documents kept"),
        (megabytes(table["bytes"]), "text kept"),
        (f"{splits['train']['documents']:,}", "training documents"),
        (f"{splits['validation']['documents']:,}", "validation documents"),
        (f"{table.get('seconds', 0):,.1f} s", "to make"),
    ]
    cards = "".join(
        f'<div class="tile"><b>{number}</b><span>{label}</span></div>' for number, label in tiles
    )
    source = escape(table["settings"]["source"]["name"])
    return (
        f'<h1>Corpus report</h1><p class="soft">Source {source}; '
        f'{len(table.get("output", []))} output shards.</p><div class="tiles">{cards}</div>'
    )


def _funnel(table: dict[str, Any]) -> str:
    first = max(table["steps"][0]["documents"], 1)
    rows, before = [], first
    for row in table["steps"]:
        lost = before - row["documents"]
        rows.append(
            [
                escape(row["step"]),
                f"{row['documents']:,}",
                f"−{lost:,}" if lost else "0",
                megabytes(row["bytes"]),
                f"{row['documents'] / first:.1%}",
                _bar(row["documents"] / first),
            ]
        )
        before = row["documents"]
    headings = ["left after", "documents", "dropped", "text", "of all", ""]
    return "<h2>Funnel</h2>" + _table(headings, rows, {1, 2, 3, 4})


def _planted(table: dict[str, Any]) -> str:
    if not table["planted"]:
        return ""
    rows = [
        [escape(kind), f"{score['planted']:,}", f"{score.get('filtered', 0):,}",
         escape(planted_line(score))]
        for kind, score in table["planted"].items()
    ]  # fmt: skip
    return (
        "<h2>Planted truth</h2><p>Known defects were planted, measured and taken out again. Near "
        "copies count for recall from a Jaccard similarity of 0.85 of word 5-grams, and against "
        "precision below the deduplication threshold.</p>"
        + _table(["kind", "planted", "filtered before", "found"], rows, {1, 2})
    )


def _reasons(table: dict[str, Any]) -> str:
    if not table["reasons"]:
        return "<h2>Why documents were dropped</h2><p>None was dropped.</p>"
    most = max(entry["count"] for entry in table["reasons"].values())
    rows = [
        [
            escape(reason),
            escape(entry["step"]),
            f"{entry['threshold']:g}" if entry["threshold"] is not None else "",
            f"{entry['count']:,}",
            megabytes(entry["bytes"]),
            _bar(entry["count"] / most, "lost"),
        ]
        for reason, entry in table["reasons"].items()
    ]
    headings = ["reason", "step", "threshold", "documents", "text", ""]
    return "<h2>Why documents were dropped</h2>" + _table(headings, rows, {2, 3, 4})


def _histograms(table: dict[str, Any]) -> str:
    """Draw what the rules measured, step by step."""
    found = table["histograms"]
    if not found:
        return ""
    steps: dict[str, list[str]] = {}
    for reason, histogram in found.items():
        steps.setdefault(histogram["step"], []).append(histograms.draw(reason, histogram))
    blocks = "".join(
        f'<h3>{escape(step)}</h3><div class="charts">{"".join(charts)}</div>'
        for step, charts in steps.items()
    )
    return (
        "<h2>What the rules measured</h2><p>Each rule's values over the documents that reached it "
        "(heights by square root); the line is the threshold, and what lies beyond it is coloured. "
        "A document goes by its first broken rule. Repeated n-grams are measured only where they "
        "come near the threshold.</p>" + blocks
    )


def _copies(table: dict[str, Any]) -> str:
    near, found = table["near_duplicates"], table["pii"]
    dedup = table["settings"]["dedup"]
    hidden = ", ".join(f"{count:,} × {escape(name)}" for name, count in found.items()) or "none"
    return (
        "<h2>Copies, splits and personal data</h2>"
        f"<p>MinHash with {dedup['bands']} bands of {dedup['rows']} rows proposed "
        f"{near.get('candidates', 0):,} pairs; {near.get('verified', 0):,} reach an exact Jaccard "
        f"similarity of {dedup['threshold']}. Whole components join one split: "
        f"{near['components']:,} components, the largest with {near['largest_component']:,} "
        f"documents.</p><p>Personal data hidden: {hidden}.</p>"
        + "".join(map(_pair, table.get("near_copies", [])))
    )


def _pair(pair: dict[str, Any]) -> str:
    """Show a dropped near copy beside the document kept in its place."""
    sides = "".join(
        f"<div><p><span class=soft>{side}</span> <code>{escape(pair[side]['id'])}</code></p>"
        f"<pre>{escape(pair[side]['text'])}</pre></div>"
        for side in ("dropped", "kept")
    )
    return (
        f"<details><summary>{escape(pair['dropped']['id'])}<span class=soft>similarity "
        f'{pair["similarity"]:.3f}</span></summary><div class="two">{sides}</div></details>'
    )


def _breakdown(table: dict[str, Any]) -> str:
    parts = []
    for name, counts in table["breakdown"].items():
        total = max(sum(counts.values()), 1)
        rows = [
            [escape(label), f"{count:,}", _bar(count / total)]
            for label, count in list(counts.items())[:20]
        ]
        parts.append(f"<div><h2>By {escape(name)}</h2>" + _table([name, "documents", ""], rows, {1})
                     + "</div>")  # fmt: skip
    most = max((row["documents"] for row in table["sizes"]), default=1)
    rows = [
        [f"{row['from']:,}–{row['to']:,}", f"{row['documents']:,}", _bar(row["documents"] / most)]
        for row in table["sizes"]
    ]
    sizes = "<div><h2>By size in bytes</h2>" + _table(["bytes", "documents", ""], rows, {1})
    note = '<p class="soft">Kinds and licences are counted before copies are dropped.</p>'
    return f'<div class="two">{"".join(parts)}{sizes}</div></div>{note}'


def _representation(table: dict[str, Any]) -> str:
    """Show which gender words stand beside occupations and nationalities."""
    found = table["representation"]
    if not found["words"]:
        return ""
    said = "; ".join(
        f"{kind} with " + ", ".join(f"{count:,} {name}" for name, count in found[kind].items())
        for kind in ("words", "documents")
    )
    parts = []
    for group in ("occupation", "nationality"):
        rows = []
        for word, counts in found[group].items():
            both = counts["female"] + counts["male"]
            share = _bar(counts["female"] / both) if both else ""
            numbers = [f"{counts[side]:,}" for side in ("all", "female", "male")]
            rows.append([escape(word), *numbers, share])
        headings = [group, "all", "female", "male", "female of both"]
        parts.append(f"<div>{_table(headings, rows, {1, 2, 3})}</div>" if rows else "")
    window = table["settings"]["bias"]["window"]
    return (
        f"<h2>Representation</h2><p>English terms with a female or male word within {window} "
        f"words, before copies are dropped. {said}.</p>"
        f'<div class="two">{"".join(parts)}</div>'
    )


def _samples(table: dict[str, Any]) -> str:
    blocks = []
    for reason in table["reasons"]:
        rows = table["samples"].get(reason, [])
        if not rows:
            continue
        body = "".join(
            f"<p><code>{escape(row['id'])}</code> <span class=soft>value {row['value']:.4g}, "
            f"threshold {row['threshold']:g}</span></p><pre>{escape(row['text'])}</pre>"
            for row in rows
        ) + _kept(table, reason)
        count = table["reasons"].get(reason, {}).get("count", len(rows))
        blocks.append(
            f"<details><summary>{escape(reason)}<span class=soft>{count:,} dropped</span>"
            f"</summary>{body}</details>"
        )
    if not blocks:
        return ""
    return (
        "<h2>A look at what was dropped and what was kept</h2><p>A few documents per reason, "
        "shortened, with personal data masked.</p>" + "".join(blocks)
    )


def _kept(table: dict[str, Any], reason: str) -> str:
    """Show the kept documents that came nearest to a rule's threshold."""
    rows = table["borderline"].get(reason, [])
    if not rows:
        return ""
    return "<p class=soft>Kept, nearest to the threshold:</p>" + "".join(
        f"<p><code>{escape(row['id'])}</code> <span class=soft>value {row['value']:.4g}</span></p>"
        f"<pre>{escape(row['text'])}</pre>"
        for row in rows
    )


def _provenance(table: dict[str, Any]) -> str:
    rows = [[escape(key), f"<code>{escape(str(table.get(key, '')))}</code>"]
            for key in ("config_hash", "input_hash")]  # fmt: skip
    for key, value in table["notes"].items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        rows.append([escape(key), escape(str(value))])
    rows.append(["corrupt records skipped", f"{table['read_errors']:,}"])
    for example in table["error_examples"]:
        rows.append([escape(example["where"]), escape(example["reason"])])
    for section, options in table["settings"].items():
        rows.append([escape(section), f"<code>{escape(str(options))}</code>"])
    return "<h2>Provenance and settings</h2>" + _table(["what", "value"], rows, set())

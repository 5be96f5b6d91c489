# SPDX-License-Identifier: Apache-2.0
"""The page that reports share: its look, and the few elements they are made of.

One file without external resources. It follows the reader's light or dark preference, prints,
and is readable without JavaScript (which only adds the cross-hair on charts).
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from llm.report.charts import number

STYLE = """
:root{--paper:#fbfaf8;--card:#fff;--ink:#1c1b1a;--soft:#5f5b57;--faint:#8d8883;--rule:#e6e2dc;
--wash:#f3f0eb;--a:#2f5fd0;--b:#d9622b;--c1:#0e8f83;--d:#8b4bb8;--e:#a67c00;--good:#19754c;
--bad:#b3261e;--accent:#2f5fd0;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#141517;--card:#1b1d20;--ink:#ebe8e3;
--soft:#aba69f;--faint:#7f7b76;--rule:#2d3034;--wash:#212428;--a:#7ea6ff;--b:#ff9a62;--c1:#4fd0c0;
--d:#cf9bf2;--e:#e3bd4f;--good:#62c998;--bad:#ff8a80;--accent:#7ea6ff}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",Arial,sans-serif;
font-feature-settings:"kern","liga"}
main{max-width:1120px;margin:0 auto;padding:56px 32px 72px}
header{margin-bottom:30px}
.kicker{margin:0 0 6px;font-size:13px;font-weight:600;letter-spacing:.08em;
text-transform:uppercase;color:var(--accent)}
h1{margin:0;font-size:40px;line-height:1.12;letter-spacing:-.022em;font-weight:700;
overflow-wrap:anywhere}
.lede{margin:12px 0 0;max-width:46em;font-size:18px;color:var(--soft)}
h2{margin:52px 0 4px;font-size:23px;letter-spacing:-.012em;line-height:1.25}
h3{margin:0 0 2px;font-size:15.5px;font-weight:650;letter-spacing:-.003em}
h2+.sub,.sub{margin:0 0 16px;color:var(--soft);font-size:15px;max-width:48em}
p{margin:0 0 12px}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
code{font-size:.9em;background:var(--wash);border-radius:4px;padding:.1em .35em}
.cards{display:flex;flex-wrap:wrap;gap:1px;
background:var(--rule);border:1px solid var(--rule);border-radius:12px;overflow:hidden;
margin:26px 0 8px}
.card{background:var(--card);padding:15px 18px 13px;flex:1 1 215px}
.card .what{font-size:13px;color:var(--soft);line-height:1.3}
.card .big{font-size:27px;font-weight:650;letter-spacing:-.02em;line-height:1.25;margin-top:3px;
font-variant-numeric:tabular-nums;white-space:nowrap}
.card .big small{font-size:15px;font-weight:500;color:var(--soft);letter-spacing:0}
.card .note{font-size:13px;color:var(--faint);line-height:1.35;min-height:1.35em}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:18px}
.panel{background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:16px 18px 10px;min-width:0;break-inside:avoid}
.wide{margin-bottom:18px}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin:0 0 4px;font-size:13.5px;
color:var(--soft)}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.key::before{content:"";display:inline-block;width:14px;border-top:3px solid var(--c);
border-radius:2px;margin-right:7px;vertical-align:middle}
.key.ref::before{border-top:2px dashed var(--soft);border-radius:0;width:18px}
.key.ref2::before{border-top-style:dotted}
svg.chart{display:block;width:100%;height:auto;overflow:visible}
svg text{font-family:inherit;font-variant-numeric:tabular-nums}
.tick{font-size:12px;fill:var(--faint)}
.grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--faint);stroke-width:1}
.line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.raw{fill:none;stroke:var(--c);stroke-width:1;opacity:.28;stroke-linejoin:round}
.dot{fill:var(--card);stroke:var(--c);stroke-width:2}
.level{stroke:var(--soft);stroke-width:1.3;stroke-dasharray:6 4}
.level.ref2{stroke-dasharray:2 3}
.hover line{stroke:var(--faint);stroke-width:1}
.hover circle{fill:var(--c);stroke:var(--card);stroke-width:1.5}
.hover text{font-size:12px;fill:var(--ink);font-weight:600;paint-order:stroke;
stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.bar{fill:var(--c);opacity:.9}.bars .label{font-size:13.5px;fill:var(--ink)}
.bars .amount{font-size:13px;fill:var(--soft);font-weight:600}
.interval{display:block}.interval .track{stroke:var(--rule);stroke-width:2}
.interval .span{stroke:var(--a);stroke-width:4;opacity:.45;stroke-linecap:round}
.interval .value{fill:var(--a)}.interval .chance{stroke:var(--b);stroke-width:2}
.switch{display:inline-flex;border:1px solid var(--rule);border-radius:8px;overflow:hidden;
margin:2px 0 14px;font-size:14px;background:var(--card)}
.axis-choice{position:absolute;opacity:0;pointer-events:none}
.switch label{padding:4px 14px;cursor:pointer;color:var(--soft)}
.switch label+label{border-left:1px solid var(--rule)}
.by-time{display:none}
.run:has(.pick-time:checked) .by-time{display:block}
.run:has(.pick-time:checked) .by-step{display:none}
.run:has(.pick-step:checked) .for-step,.run:has(.pick-time:checked) .for-time{
background:var(--wash);color:var(--ink);font-weight:600}
.run:has(:focus-visible.axis-choice) .switch{outline:2px solid var(--accent)}
.scroll{overflow-x:auto;margin:6px 0 14px}
table{border-collapse:collapse;width:100%;font-size:14.5px;line-height:1.4}
th{font-weight:600;text-align:left;color:var(--soft);font-size:13px;white-space:nowrap}
th,td{padding:8px 18px 8px 0;border-bottom:1px solid var(--rule);vertical-align:middle}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.n b{font-weight:650}
tr:last-child td{border-bottom:0}
td.wrap{overflow-wrap:break-word;min-width:4em}
.yes{color:var(--good);font-weight:600}.no{color:var(--faint)}
.sample{border-left:3px solid var(--rule);padding:1px 0 1px 16px;margin:0 0 16px;
break-inside:avoid}
.sample .at{font-size:13px;color:var(--faint);font-variant-numeric:tabular-nums}
.sample pre{margin:2px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13.5px;
line-height:1.5;max-height:17em;overflow:auto}
.sample .prompt{color:var(--accent);font-weight:600}
.samples{gap:4px 36px;margin-top:22px;grid-template-columns:repeat(auto-fit,minmax(420px,1fr))}
.sample:last-of-type{border-left-color:var(--accent)}
details{border-top:1px solid var(--rule);padding:10px 0}
.folds{margin-top:22px;border-bottom:1px solid var(--rule)}
.folds+.sub{margin-top:12px}
.stage>.cards:empty{display:none}
summary{cursor:pointer;font-weight:600;font-size:15px}
summary span{color:var(--faint);font-weight:400;margin-left:8px}
dl{display:grid;grid-template-columns:minmax(120px,240px) 1fr;margin:10px 0 2px;font-size:14px;
line-height:1.5}
dt,dd{margin:0;padding:3px 0}dt{color:var(--soft)}dd{overflow-wrap:anywhere;
font-variant-numeric:tabular-nums}
.configs{columns:2 380px;column-gap:44px;margin-top:16px}
.configs section{break-inside:avoid;margin-bottom:20px}
.configs dl{grid-template-columns:minmax(110px,42%) 1fr;margin-top:2px}
.configs dl>*{border-top:1px solid var(--rule)}
.configs dd{font-family:ui-monospace,Menlo,Consolas,"Liberation Mono",monospace;font-size:13px}
.flag{border:1px solid var(--bad);color:var(--bad);border-radius:10px;padding:10px 16px;
margin:18px 0;font-size:15px}
.rail{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:12px;
margin:28px 0 8px;padding:0;list-style:none;counter-reset:stage}
.rail li{counter-increment:stage;min-width:0}
.rail a{display:block;height:100%;color:inherit;text-decoration:none;background:var(--card);
border:1px solid var(--rule);border-radius:12px;padding:13px 14px 12px;
border-top:3px solid var(--accent)}
.rail a:hover{border-color:var(--accent)}
.rail .what{font-size:13px;font-weight:650}
.rail .what::before{content:counter(stage) " ";color:var(--faint);font-weight:500}
.rail .big{font-size:25px;font-weight:650;letter-spacing:-.02em;line-height:1.3;
font-variant-numeric:tabular-nums}
.rail .note{font-size:12.5px;color:var(--soft);line-height:1.35}
.stage{border-top:1px solid var(--rule);margin-top:46px}
.stage h2{margin-top:26px}
a{color:var(--accent)}
footer{margin-top:60px;color:var(--faint);font-size:13.5px;border-top:1px solid var(--rule);
padding-top:16px}
@media (max-width:640px){main{padding:32px 18px 48px}h1{font-size:30px}.lede{font-size:16.5px}
.grid2,.samples{grid-template-columns:1fr}.rail{grid-template-columns:1fr 1fr}
.wide,.panel:has(.bars){overflow-x:auto}.wide svg.chart,svg.bars{min-width:640px}
dl{grid-template-columns:1fr}dd{padding-top:0}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#111;--soft:#444;--faint:#666;--rule:#ccc;
--wash:#f4f4f4;--a:#2f5fd0;--b:#c24f1b;--c1:#0b7a70;--d:#7a3ba6;--e:#8a6700;--accent:#2f5fd0;
color-scheme:light}main{max-width:none;padding:0}body{font-size:11pt}h1{font-size:24pt}
h2{font-size:15pt;margin-top:24pt;break-after:avoid}.switch,.hover{display:none}
.grid2{grid-template-columns:1fr 1fr}.card{flex-basis:22%}
.sample pre{max-height:none}
.configs section{break-inside:auto}th,td{padding-right:10pt}.interval{width:90pt}
a{color:inherit;text-decoration:none}@page{margin:16mm}}
"""

SCRIPT = """
(()=>{const NS="http://www.w3.org/2000/svg";
const make=(name,attributes,parent)=>{const e=document.createElementNS(NS,name);
for(const k in attributes)e.setAttribute(k,attributes[k]);parent.appendChild(e);return e};
document.querySelectorAll("svg[data-points]").forEach(svg=>{
const lines=JSON.parse(svg.dataset.points),layer=svg.querySelector(".hover"),
box=svg.viewBox.baseVal;
svg.addEventListener("pointerleave",()=>layer.replaceChildren());
svg.addEventListener("pointermove",event=>{
const at=new DOMPoint(event.clientX,event.clientY).matrixTransform(svg.getScreenCTM().inverse());
layer.replaceChildren();
const all=lines.map(l=>l.p.reduce((m,p)=>Math.abs(p[0]-at.x)<Math.abs(m[0]-at.x)?p:m));
const lead=all.reduce((m,p)=>Math.abs(p[0]-at.x)<Math.abs(m[0]-at.x)?p:m);
make("line",{x1:lead[0],x2:lead[0],y1:12,y2:box.height-30},layer);
make("text",{x:Math.min(Math.max(lead[0],40),box.width-40),y:9,"text-anchor":"middle"},layer)
.textContent=lead[2];
all.forEach((p,i)=>{if(Math.abs(p[0]-lead[0])>24)return;
make("circle",{cx:p[0],cy:p[1],r:4,style:"--c:var(--"+lines[i].c+")"},layer);
const left=p[0]>box.width-110;
make("text",{x:p[0]+(left?-8:8),y:p[1]-8,"text-anchor":left?"end":"start"},layer)
.textContent=p[3]})})})})();
"""


def document(title: str, body: str) -> str:
    """Return a whole HTML page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"{body}\n<footer>Made from the run&rsquo;s own files by jax-llm.</footer>\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def heading(kicker: str, title: str, lede: str) -> str:
    """Return the page's opening: what it is, its name, one sentence."""
    return (
        f'<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>'
        f'<p class="lede">{escape(lede)}</p></header>'
    )


def section(title: str, body: str, sub: str = "") -> str:
    """Return a section with its heading; nothing for an empty body."""
    if not body:
        return ""
    line = f'<p class="sub">{escape(sub)}</p>' if sub else ""
    return f"<section><h2>{escape(title)}</h2>{line}{body}</section>"


def cards(items: Sequence[tuple[str, str, str, str]]) -> str:
    """Return headline numbers: (what, number, unit, note) each."""
    if not items:
        return ""
    cells = []
    for what, big, unit, note in items:
        small = f" <small>{escape(unit)}</small>" if unit else ""
        cells.append(
            f'<div class="card"><div class="what">{escape(what)}</div>'
            f'<div class="big">{escape(big)}{small}</div>'
            f'<div class="note">{escape(note)}</div></div>'
        )
    return f'<div class="cards">{"".join(cells)}</div>'


def panel(title: str, body: str, wide: bool = False) -> str:
    """Return a framed box with a title."""
    return f'<div class="panel{" wide" if wide else ""}"><h3>{escape(title)}</h3>{body}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Return a table; cells are HTML already, headings are text.

    Args:
        head: column titles.
        rows: cells.
        numeric: indices of right-aligned columns.
    """
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"n" if i in numeric else "wrap"}">{cell}</td>'
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    if not body:
        return ""
    titles = "".join(
        f'<th class="{"n" if i in numeric else ""}">{escape(name)}</th>'
        for i, name in enumerate(head)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def definitions(values: Mapping[str, Any]) -> str:
    """Return a list of names and values."""
    rows = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(show(value))}</dd>"
        for key, value in values.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def show(value: Any) -> str:
    """Write a config value as a reader would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u2009") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, list | tuple):
        return ", ".join(show(item) for item in value) or "(empty)"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {show(item)}" for key, item in value.items()) or "(empty)"
    return str(value) or "(empty)"


def configuration(config: Mapping[str, Any]) -> str:
    """Return a config in two columns, one block per section, nested keys dotted."""
    top = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    blocks = {"general": top} if top else {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            blocks[str(key)] = _dotted(value)
    if not blocks:
        return ""
    parts = "".join(
        f"<section><h3>{escape(name)}</h3>{definitions(values)}</section>"
        for name, values in blocks.items()
    )
    return f'<div class="configs">{parts}</div>'


def _dotted(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(_dotted(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def folded(title: str, body: str, note: str = "", opened: bool = False) -> str:
    """Return a part that the reader opens; nothing for an empty body."""
    if not body:
        return ""
    return (
        f"<details{' open' if opened else ''}><summary>{escape(title)}"
        f"<span>{escape(note)}</span></summary>{body}</details>"
    )


def sample(step: Any, prompt: str, text: str) -> str:
    """Return one generated text, its prompt marked."""
    return (
        f'<div class="sample"><div class="at">{escape(str(step))}</div><pre>'
        f'<span class="prompt">{escape(prompt)}</span>{escape(text)}</pre></div>'
    )

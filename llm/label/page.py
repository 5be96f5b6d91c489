# SPDX-License-Identifier: Apache-2.0
"""The labelling page: plain HTML, CSS and JavaScript without anything from elsewhere.

Texts of prompts and answers enter it through `textContent` alone.
"""

_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="token" content="TOKEN">
<title>Which answer is better?</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/label.css"></head>
<body>
<header><h1>Which answer is better?</h1>
<span id="who"></span>
<span id="count"></span>
<div id="bar" role="progressbar" aria-label="progress"><div id="part"></div></div></header>
<main>
<form id="enter" hidden>
<label for="name">Your name is kept with your choices.</label>
<div class="row"><input id="name" maxlength="40" autocomplete="off" required>
<button type="submit">Begin</button></div></form>
<section id="work" hidden>
<div id="prompt" aria-label="prompt"></div>
<div id="answers"></div>
<nav id="keys" aria-label="choices"></nav>
</section>
<section id="end" hidden><p>All done. Thank you.</p>
<p class="soft">Backspace or <kbd>u</kbd> takes the last choice back.</p></section>
<p id="problem" role="alert" hidden></p>
</main>
<script src="/label.js"></script>
</body></html>
"""

CSS = """
:root{--paper:#fbfaf8;--card:#fff;--ink:#1c1b1a;--soft:#5f5b57;--rule:#e2ddd6;--wash:#f3f0eb;
--accent:#2f5fd0;--bad:#b3261e;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#141517;--card:#1b1d20;--ink:#ebe8e3;
--soft:#aba69f;--rule:#2d3034;--wash:#212428;--accent:#7ea6ff;--bad:#ff8a80}}
*{box-sizing:border-box}[hidden]{display:none!important}
body{margin:0;background:var(--paper);color:var(--ink);min-height:100vh;display:flex;
flex-direction:column;font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",
"Liberation Sans",Arial,sans-serif}
header{display:flex;align-items:baseline;gap:18px;padding:14px 28px;position:relative;
border-bottom:1px solid var(--rule)}
h1{font-size:17px;font-weight:650;margin:0;flex:1}
#who,#count,.soft{color:var(--soft);font-size:14px;font-variant-numeric:tabular-nums}
#bar{position:absolute;left:0;right:0;bottom:-1px;height:2px}
#part{height:100%;width:0;background:var(--accent)}
main{flex:1;width:100%;max-width:1280px;margin:0 auto;padding:24px 28px 0;display:flex;
flex-direction:column}
#work{flex:1;display:flex;flex-direction:column}
#enter,#end{margin:12vh auto;max-width:30em}
.row{display:flex;gap:10px;margin-top:10px}
input{flex:1;font:inherit;padding:8px 12px;border:1px solid var(--rule);border-radius:8px;
background:var(--card);color:inherit}
#prompt{max-height:34vh;overflow:auto;margin-bottom:18px}
.turn{padding:10px 16px;background:var(--wash);border-radius:10px;margin-bottom:8px}
.label{font-size:12.5px;font-weight:600;color:var(--soft);margin-bottom:2px;display:flex;
justify-content:space-between}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
#answers{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px;flex:1;
align-items:stretch}
@media (max-width:700px){#answers{grid-template-columns:minmax(0,1fr)}}
.answer{font:inherit;color:inherit;text-align:start;background:var(--card);
border:1px solid var(--rule);border-radius:12px;padding:12px 18px 16px;cursor:pointer;
display:flex;flex-direction:column;justify-content:flex-start}
.answer .text{max-height:52vh;overflow:auto}
.answer:hover{border-color:var(--accent)}
.answer.placed{border-color:var(--accent);box-shadow:inset 0 0 0 1px var(--accent)}
.rank{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
#keys{position:sticky;bottom:0;display:flex;flex-wrap:wrap;gap:8px;justify-content:center;
padding:16px 0 18px;background:var(--paper)}
#keys button,#enter button{font:inherit;font-size:15px;color:inherit;background:var(--card);
border:1px solid var(--rule);border-radius:8px;padding:6px 13px;cursor:pointer}
#keys button:hover:enabled,#enter button:hover{border-color:var(--accent)}
#keys button:disabled{opacity:.45;cursor:default}
kbd{font:600 12px/1.5 ui-monospace,Menlo,Consolas,"Liberation Mono",monospace;color:var(--soft);
border:1px solid var(--rule);border-bottom-width:2px;border-radius:4px;padding:0 5px;
margin-inline-start:7px;background:var(--wash)}
#problem{color:var(--bad);text-align:center;margin:8px 0 16px}
"""

JS = """
"use strict";
const token = document.querySelector("meta[name=token]").content;
const at = (id) => document.getElementById(id);
let annotator = "", task = null, since = 0, tiers = [], joins = false, busy = false;

function make(tag, kind, text) {
  const element = document.createElement(tag);
  element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}

async function call(path, more) {
  if (busy) return;
  busy = true;
  try {
    const reply = await fetch(path, {method: "POST", body: JSON.stringify({annotator, ...more}),
      headers: {"Content-Type": "application/json", "X-Label-Token": token}});
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    at("problem").hidden = true;
    show(found);
  } catch (error) {
    at("problem").textContent = error instanceof TypeError
      ? "The server does not answer. Start it again; what is decided is kept." : error.message;
    at("problem").hidden = false;
    if (task === null) at("enter").hidden = false;
  } finally { busy = false; }
}

function show(found) {
  task = found.task;
  tiers = [];
  joins = false;
  at("enter").hidden = true;
  at("work").hidden = task === null;
  at("end").hidden = task !== null;
  at("who").textContent = annotator;
  at("count").textContent = found.done + " of " + found.total;
  at("part").style.width = (found.total ? 100 * found.done / found.total : 100) + "%";
  document.body.dataset.done = found.done;
  if (task === null) return;
  at("prompt").replaceChildren(...task.prompt.map((turn) => {
    const box = make("div", "turn");
    const text = make("div", "text", turn.content);
    text.dir = "auto";
    box.append(make("div", "label", turn.role), text);
    return box;
  }));
  at("answers").replaceChildren(...task.answers.map((answer, place) => {
    const box = make("button", "answer");
    box.type = "button";
    const label = make("div", "label");
    label.append(make("span", "", String(place + 1)), make("span", "rank", ""));
    const text = make("div", "text", answer);
    text.dir = "auto";
    box.append(label, text);
    box.addEventListener("click", () => press(String(place + 1)));
    return box;
  }));
  draw();
  at("prompt").scrollTop = at("prompt").scrollHeight;
  since = performance.now();
}

const two = () => task.answers.length === 2;
const placed = () => tiers.flat().length;

function draw() {
  const whole = placed() === task.answers.length;
  const choices = two()
    ? [["1", "Left", "\\u2190"], ["t", "Tie"], ["2", "Right", "\\u2192"], ["b", "Both bad"]]
    : [["=", "Same as the last", "=", !placed() || whole], ["Enter", "Decide", "\\u21b5", !whole],
       ["Escape", "Clear", "esc", !placed()], ["t", "All equal"], ["b", "All bad"]];
  choices.push(["s", "Skip"], ["u", "Undo", "u", !Number(document.body.dataset.done)]);
  at("keys").replaceChildren(...choices.map(([key, name, sign, off]) => {
    const button = make("button", "", name);
    button.type = "button";
    button.disabled = Boolean(off);
    button.append(make("kbd", "", sign || key));
    button.addEventListener("click", () => press(key));
    return button;
  }));
  [...at("answers").children].forEach((box, place) => {
    const rank = tiers.findIndex((tier) => tier.includes(place));
    box.classList.toggle("placed", rank >= 0);
    box.querySelector(".rank").textContent = rank < 0 ? "" :
      ["best", "second", "third", "last"][rank];
  });
}

function decide(choice, ranking) {
  const seconds = (performance.now() - since) / 1000;
  call("/api/label", {task: task.id, choice, ranking, seconds});
}

function press(key) {
  if (busy || !annotator) return false;
  if (key === "u" || key === "Backspace") { call("/api/undo", {}); return true; }
  if (task === null) return false;
  const count = task.answers.length;
  if (key === "s") decide("skip");
  else if (key === "b") decide("both_bad");
  else if (key === "t" || key === "0") decide("tie");
  else if (two() && (key === "ArrowLeft" || key === "1")) decide("left");
  else if (two() && (key === "ArrowRight" || key === "2")) decide("right");
  else if (!two() && key >= "1" && key <= String(count) && key.length === 1) {
    const place = Number(key) - 1;
    if (tiers.flat().includes(place)) return true;
    if (joins && tiers.length) tiers[tiers.length - 1].push(place); else tiers.push([place]);
    joins = false;
    draw();
  } else if (!two() && key === "=" && placed() && placed() < count) joins = true;
  else if (!two() && key === "Escape") { tiers = []; joins = false; draw(); }
  else if (!two() && key === "Enter" && placed() === count) decide("ranking", tiers);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.tagName === "INPUT") return;
  if (event.key === "Enter" && event.target.closest("nav")) return;
  if (press(event.key)) event.preventDefault();
});

at("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = at("name").value.trim();
  sessionStorage.setItem("annotator", annotator);
  call("/api/next", {});
});

annotator = sessionStorage.getItem("annotator") || "";
if (annotator) call("/api/next", {}); else { at("enter").hidden = false; at("name").focus(); }
"""

FILES = {"/label.css": ("text/css", CSS), "/label.js": ("text/javascript", JS)}


def html(token: str) -> str:
    """Return the page; its token is what calls must carry."""
    return _HTML.replace("TOKEN", token)

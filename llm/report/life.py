# SPDX-License-Identifier: Apache-2.0
"""The report of a whole life: documents, tokenizer, training stages, results, serving, one page."""

import os
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, NamedTuple

from llm import files
from llm.report import charts, page, sections
from llm.report.charts import duration, number
from llm.report.reading import Run, lookup, read_run, series

Key = tuple[str, str]  # a stage's one number, and what it is


class Stage(NamedTuple):
    """How a stage is told.

    Attributes:
        title: its heading.
        sentence: what it does.
        key: run -> its one number and what that is; ("", "") if there is none.
    """

    title: str
    sentence: str
    key: Callable[[Run], Key]


def life_report(
    directories: Mapping[str, Any], out: Any, title: str = "The whole life of a model"
) -> Any:
    """Write one page that joins the folders of all stages.

    Args:
        directories: stage -> its folder, in the order to tell them. Stages that the page has words
            for are in `STAGES`; others are shown under their own name. A folder that does
            not exist is left out.
        out: the HTML file to write; links go to the stages' own reports, relative to it.
        title: of the page.

    Returns:
        The path of the page.

    Raises:
        StorageError: the page cannot be written.
    """
    runs = {name: read_run(folder) for name, folder in directories.items()}
    target = files.path(out)
    files.write_atomic(target, render(runs, target.parent, title))
    return target


def render(runs: Mapping[str, Run], base: Any, title: str = "The whole life of a model") -> str:
    """Return the page as HTML; `base` is the folder it will lie in."""
    told = {name: run for name, run in runs.items() if not run.empty}
    entries = [entry for run in told.values() for entry in run.results]
    body = page.heading("Model report", title, summary(told))
    body += _rail(told)
    body += page.section(
        "Beside simple methods",
        _comparison(told),
        "Bits per byte on held-out text, less is better. The model must beat an n-gram model "
        "counted on the same tokens; one counted on the whole corpus is shown as well.",
    )
    known = sections.baselines(entries)
    body += "".join(_stage(name, run, base, known) for name, run in told.items())
    missing = [name for name in runs if name not in told]
    if missing:
        body += f'<p class="sub">Nothing was found of: {escape(", ".join(missing))}.</p>'
    return page.document(title, body)


def summary(runs: Mapping[str, Run]) -> str:
    """Say the life in one sentence, with its total time."""
    if not runs:
        return "No stage has written anything yet."
    start = end = ""
    if "corpus" in runs:
        big, _ = _corpus_key(runs["corpus"])
        start = f"From {big} documents " if big else ""
    for name in ("eval", "pretrain"):
        bits = _bits(runs[name]) if name in runs else None
        if bits and not end:
            end = f"to a model of {number(bits, 3)} bits per byte "
    if start and "serve" in runs:
        end += "that answers over HTTP " if end else "to a model that answers over HTTP "
    text = f"{start}{end}in {len(runs)} stages"
    total = sum(run.metrics[-1]["time"] for run in runs.values() if run.metrics)
    text += f", with {duration(total)} of training" if total else ""
    return text[:1].upper() + text[1:] + "."


def _bits(run: Run) -> float | None:
    """Return a model's bits per byte: from results, else from the last evaluation."""
    for entry in run.results:
        found = sections.best_metric(entry, "bits_per_byte")
        if found and not sections.is_baseline(entry):
            return found.value
    for name in sections.eval_names(run):
        values = series(run, f"eval/{name}/bits_per_byte").values
        if values:
            return values[-1]
    return None


def _rail(runs: Mapping[str, Run]) -> str:
    items = []
    for name, run in runs.items():
        stage = STAGES.get(name)
        big, note = stage.key(run) if stage else ("", "")
        heading = stage.title if stage else name.replace("_", " ").capitalize()
        items.append(
            f'<li><a href="#{escape(name)}"><div class="what">{escape(heading)}</div>'
            f'<div class="big">{escape(big or "✓")}</div>'
            f'<div class="note">{escape(note)}</div></a></li>'
        )
    return f'<ol class="rail">{"".join(items)}</ol>' if items else ""


def _comparison(runs: Mapping[str, Run]) -> str:
    """Draw bits per byte of models and baselines as bars; "" unless there are both."""
    models, simple = [], []
    for stage, run in runs.items():
        for entry in run.results:
            metric = sections.best_metric(entry, "bits_per_byte", "bpb")
            if metric is None:
                continue
            if sections.is_baseline(entry):
                simple.append((sections.label(entry), metric.value, "e"))
            elif stage != "compress":  # which has a table of its own
                models.append((sections.label(entry), metric.value, "a"))
    if not models or not simple:
        return ""
    if len(models) == 1:
        models = [("this model", models[0][1], "a")]
    rows = sorted(models + simple, key=lambda row: row[1])
    return page.panel("", charts.bars(rows, width=900))


def _stage(name: str, run: Run, base: Any, known: list[tuple[str, float]]) -> str:
    stage = STAGES.get(name)
    heading = stage.title if stage else name.replace("_", " ").capitalize()
    parts = f"<h2>{escape(heading)}</h2>"
    if stage:
        parts += f'<p class="sub">{escape(stage.sentence)}</p>'
    parts += sections.warnings(run)
    facts = _facts(run)
    parts += page.cards(facts)
    parts += _funnel(run)
    parts += _fertility(run)
    parts += sections.curves(run, name, known if name == "pretrain" else (), small=6)
    parts += sections.compared(run.results) or sections.results(run.results)
    parts += sections.samples(run, shown=3)
    folds = _examples(run)
    folds += page.folded("Configuration", page.configuration(sections.short_config(run.config)))
    parts += f'<div class="folds">{folds}</div>' if folds else ""
    parts += _links(run, base)
    return f'<section class="stage" id="{escape(name)}">{parts}</section>'


def _facts(run: Run) -> list[tuple[str, str, str, str]]:
    """Return the small numbers of a stage that its summary file lists.

    `summary.json` may hold {"facts": [{"what", "value", "unit"?, "note"?}, …]}.
    """
    cards = []
    for fact in run.artifacts.get("summary", {}).get("facts", [])[:8]:
        if isinstance(fact, Mapping) and "what" in fact and "value" in fact:
            value = fact["value"]
            big = number(value) if isinstance(value, float) else page.show(value)
            cards.append(
                (str(fact["what"]), big, str(fact.get("unit", "")), str(fact.get("note", "")))
            )
    return cards


def _funnel(run: Run) -> str:
    """Draw how many documents each step of a corpus left, from `funnel.json`."""
    steps = run.artifacts.get("funnel", {}).get("steps", [])
    rows = []
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, Mapping):
            name = step.get("step") or step.get("name")
            left = step.get("out", step.get("documents", step.get("kept")))
            if name and isinstance(left, int | float):
                rows.append((str(name).replace("_", " "), float(left), "c1"))
    if not rows:
        return ""
    drawing = charts.bars(rows, width=900, exact=True)
    return page.panel("Documents left after each step", drawing) + _planted(run)


def _planted(run: Run) -> str:
    """Tabulate what was planted in a corpus to see whether the cleaning finds it."""
    rows = []
    for name, found in run.artifacts.get("funnel", {}).get("planted", {}).items():
        if isinstance(found, Mapping) and "recall" in found:
            counts = [page.show(found.get(key, "")) for key in ("positives", "hits")]
            shares = [
                "–" if found.get(key) is None else number(float(found[key]), 3)
                for key in ("recall", "precision")
            ]
            rows.append([escape(name), *counts, *shares])
    head = ["planted to check the cleaning", "there", "found", "recall", "precision"]
    return page.table(head, rows, (1, 2, 3, 4))


def _fertility(run: Run) -> str:
    """Tabulate how the tokenizer splits each source of text."""
    report = run.artifacts.get("fertility", {})
    sources = report.get("sources", {})
    columns = ("bytes_per_token", "tokens_per_word", "vocabulary_used", "byte_fallback")
    rows = []
    for name, ratios in {**sources, "all": report.get("all", {})}.items():
        if isinstance(ratios, Mapping) and ratios:
            values = [ratios.get(column) for column in columns]
            shown = [number(float(v), 3) if isinstance(v, int | float) else "" for v in values]
            rows.append([escape(str(name) or "unnamed"), *shown])
    head = ["source", *(column.replace("_", " ") for column in columns)]
    return page.table(head, rows[-12:], (1, 2, 3, 4))


def _examples(run: Run, most: int = 3) -> str:
    """Fold out a few single questions or generations of the results files."""
    out = ""
    for entry in run.results:
        items = [i for i in entry.get("items", [])[:most] if isinstance(i, Mapping)]
        body = "".join(_example(item) for item in items)
        out += page.folded(
            f"Examples: {sections.label(entry)}", body, f"{len(items)} of {entry.get('n')}"
        )
    return out


def _example(item: Mapping[str, Any]) -> str:
    if isinstance(item.get("options"), list):
        rows = []
        for index, option in enumerate(item["options"]):
            gold, chosen = index == item.get("gold"), index == item.get("prediction")
            mark = '<span class="yes">right</span>' if gold else ""
            pick = "chosen" if chosen else ""
            rows.append([f"<code>{escape(str(option))}</code>", mark, pick])
        question = escape(
            str(item.get("question") or item.get("prompt") or item.get("context", ""))
        )
        return f"<p>{question}</p>{page.table(['option', 'answer', 'model'], rows)}"
    prompt = str(item.get("prompt", ""))
    text = str(item.get("output", item.get("prediction", item.get("text", ""))))
    answer = f"expected: {item['answer']}" if item.get("answer") else ""
    return page.sample(answer, prompt, text[:2000])


def _links(run: Run, base: Any) -> str:
    """Link to the stage's own report, card and datasheet where they exist."""
    found = []
    for name in ("report.html", "model_card.md", "datasheet.md"):
        file = run.path / name
        if file.is_file():
            relative = (
                os.path.relpath(str(file), str(base)) if "://" not in str(file) else str(file)
            )
            found.append(f'<a href="{escape(relative, quote=True)}">{escape(name)}</a>')
    return f'<p class="sub">More: {" · ".join(found)}</p>' if found else ""


def _corpus_key(run: Run) -> Key:
    shards = run.artifacts.get("manifest", {}).get("shards", [])
    listed = [s for s in shards if isinstance(s, Mapping)] if isinstance(shards, list) else []
    count = sum(s.get("count", 0) for s in listed)
    size = sum(s.get("bytes", 0) for s in listed)
    if not count:
        return "", ""
    return page.show(count), "clean documents" + (f", {number(size / 1e6, 3)} MB" if size else "")


def _tokenizer_key(run: Run) -> Key:
    size = run.artifacts.get("tokenizer", {}).get("vocab_size")
    ratio = lookup(run.artifacts.get("fertility", {}), "all.bytes_per_token")
    if not size:
        return "", ""
    note = f"tokens, {number(ratio, 3)} bytes each" if isinstance(ratio, int | float) else "tokens"
    return page.show(size), note


def _training_key(run: Run) -> Key:
    """Prefer reward accuracy, then reward, bits per byte, held-out loss, training loss."""
    for metric, note, percent in (
        ("reward_accuracy", "reward accuracy", True),
        ("reward", "reward of held-out questions", False),
        ("bits_per_byte", "bits per byte, held out", False),
        ("loss", "held-out loss", False),
    ):
        for name in sections.eval_names(run):
            values = series(run, f"eval/{name}/{metric}").values
            if values:
                text = f"{100 * values[-1]:.0f} %" if percent else number(values[-1], 3)
                first = f"{100 * values[0]:.0f} %" if percent else number(values[0], 3)
                return text, note + (f", from {first}" if len(values) > 1 else "")
    loss = series(run, "train/loss").values
    return (number(loss[-1], 3), "training loss") if loss else ("", "")


def _eval_key(run: Run) -> Key:
    for entry in run.results:
        for metric in ("acc_norm", "acc", "accuracy", "exact_match"):
            found = sections.best_metric(entry, metric)
            if found and found.chance is not None:
                return (
                    f"{100 * found.value:.0f} %",
                    f"right by choice, chance {100 * found.chance:.0f} %",
                )
    bits = _bits(run)
    return (number(bits, 3), "bits per byte") if bits else ("", "")


def _summary_key(run: Run) -> Key:
    """Take {"headline": {"value", "unit"?, "note"?}} of a stage's summary file."""
    found = run.artifacts.get("summary", {}).get("headline", {})
    if not isinstance(found, Mapping) or "value" not in found:
        return "", ""
    value = found["value"]
    big = number(value, 3) if isinstance(value, float) else page.show(value)
    return f"{big} {found.get('unit', '')}".strip(), str(found.get("note", ""))


STAGES: dict[str, Stage] = {
    "corpus": Stage("Corpus", "Documents collected, cleaned and deduplicated.", _corpus_key),
    "tokenizer": Stage("Tokenizer", "A vocabulary learned from the corpus.", _tokenizer_key),
    "pretrain": Stage(
        "Pre-training", "The model learns to predict the next token of documents.", _training_key
    ),
    "sft": Stage(
        "Fine-tuning", "It learns to answer, from questions made of the corpus.", _training_key
    ),
    "dpo": Stage(
        "Preferences", "It learns to prefer the true answer over a plausible one.", _training_key
    ),
    "grpo": Stage(
        "Reinforcement", "It answers by itself, and learns from what a rule rewards.", _training_key
    ),
    "eval": Stage("Evaluation", "Every number beside its chance level and interval.", _eval_key),
    "compress": Stage("Compression", "Smaller weights, and what they cost.", _summary_key),
    "serve": Stage("Serving", "The model answers over HTTP.", _summary_key),
}

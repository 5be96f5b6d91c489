# SPDX-License-Identifier: Apache-2.0
"""The report of one run: what was trained, how it went, what it says, what it scored."""

from collections.abc import Sequence
from typing import Any

from llm import files
from llm.report import page, plots, sections
from llm.report.charts import duration, number
from llm.report.reading import Run, lookup, read_run, series

Card = tuple[str, str, str, str]


def run_report(workdir: Any, out: Any = None, related: Sequence[Any] = (), png: bool = True) -> Any:
    """Write `report.html` (and `curves.png`) for a run from the files in its folder.

    Args:
        workdir: the run's folder (config.json, metrics.jsonl, samples.jsonl, results/).
        out: where to write the page; `<workdir>/report.html` by default, curves.png beside it.
        related: folders of other stages whose results belong in this report (evaluations of
            this model, baselines).
        png: also draw curves.png.

    Returns:
        The path of the page.

    Raises:
        StorageError: the page cannot be written.
    """
    run = read_run(workdir)
    others = [read_run(folder) for folder in related]
    target = files.path(out) if out else run.path / "report.html"
    files.write_atomic(target, render(run, others))
    if png and run.metrics:
        known = sections.baselines([e for one in (run, *others) for e in one.results])
        plots.write_png(run, target.parent / "curves.png", known)
    return target


def render(run: Run, others: Sequence[Run] = ()) -> str:
    """Return the page of a run as HTML."""
    entries = [entry for one in (run, *others) for entry in one.results]
    known = sections.baselines(entries)
    body = page.heading("Run report", title(run), summary(run))
    body += sections.warnings(run)
    body += page.cards(headline(run, known))
    body += page.section("How training went", sections.curves(run, "run", known))
    body += page.section(
        "What the model writes",
        sections.samples(run),
        "The same prompt as training goes on; the prompt is in colour.",
    )
    scores = [e for e in entries if not sections.is_baseline(e)]
    body += page.section("Results", sections.results(scores))
    compared = sections.results([e for e in entries if sections.is_baseline(e)], "baseline")
    body += page.section("Baselines", compared, "What simple methods reach on the same text.")
    body += page.section("Configuration", page.configuration(sections.short_config(run.config)))
    body += page.section("Software and hardware", sections.hardware(run))
    return page.document(f"{title(run)} · run report", body)


def title(run: Run) -> str:
    """Return the run's name: the config's own, else the folder's."""
    name = lookup(run.config, "name") or lookup(run.config, "run_name") or run.name
    return str(name)


def summary(run: Run) -> str:
    """Say in one sentence what the run was."""
    if run.empty:
        return "There is nothing in this folder yet."
    objective = lookup(run.config, "objective.name")
    n = parameters(run)
    parts = []
    if n:
        kind = lookup(run.config, "model.architecture", "decoder")
        parts.append(f"A {str(kind).replace('_', '-')} with {number(n, 3)} parameters")
    else:
        parts.append("A model")
    if objective:
        parts.append(f"trained with the objective {objective}")
    if run.metrics:
        last = run.metrics[-1]
        parts.append(f"for {page.show(int(last['step']))} steps in {duration(last['time'])}")
    environment = run.artifacts.get("environment", {})
    if environment.get("device_kind"):
        count = environment.get("devices", 1)
        parts.append(f"on {count} × {environment['device_kind']}")
    return " ".join(parts) + "."


def parameters(run: Run) -> float | None:
    """Return the number of parameters that the run wrote down, if it did."""
    for source in (run.artifacts.get("summary", {}), run.config, lookup(run.config, "model", {})):
        for key in ("n_params", "parameters", "n_parameters"):
            if isinstance(source.get(key), int | float):
                return float(source[key])
    return None


def headline(run: Run, baselines: Sequence[tuple[str, float]] = ()) -> list[Card]:
    """Choose the numbers that open the report."""
    cards: list[Card] = []
    for name in sections.eval_names(run)[:2]:
        cards += _eval_cards(run, name, baselines)
    loss = series(run, "train/loss")
    if loss and not any(card[0].endswith("loss") for card in cards):
        cards.append(
            ("Training loss", number(loss.values[-1]), "", f"from {number(loss.values[0])}")
        )
    tokens = tokens_seen(run)
    if tokens:
        cards.append(("Tokens seen", number(tokens, 3), "", _epochs(run)))
    cards += _speed_cards(run)
    if run.metrics:
        last = run.metrics[-1]
        steps = int(last["step"])
        goodput = series(run, "perf/goodput").values
        note = f"goodput {goodput[-1]:.0%}" if goodput else f"{page.show(steps)} steps"
        cards.append(("Wall time", *_split(duration(last["time"])), note))
    return cards[:8]


def _split(text: str) -> tuple[str, str]:
    """Split "3.4 s" into number and unit; longer durations stay whole."""
    value, _, unit = text.partition(" ")
    return (value, unit) if " " not in unit else (text, "")


def _eval_cards(run: Run, name: str, baselines: Sequence[tuple[str, float]]) -> list[Card]:
    cards: list[Card] = []
    loss = series(run, f"eval/{name}/loss")
    if loss:
        best = min(range(len(loss.values)), key=loss.values.__getitem__)
        note = f"best {number(loss.values[best])} at step {page.show(int(loss.steps[best]))}"
        cards.append((f"{name} loss".capitalize(), number(loss.values[-1]), "", note))
    bits = series(run, f"eval/{name}/bits_per_byte")
    if bits:
        note = f"from {number(bits.values[0], 3)}"
        if baselines:
            label, level = min(baselines, key=lambda b: b[1])
            note = f"{label}: {number(level, 3)}"
        cards.append(("Bits per byte", number(bits.values[-1]), "", note))
    reward = series(run, f"eval/{name}/reward").values
    if reward:
        cards.append(("Reward", number(reward[-1]), "", f"from {number(reward[0], 3)}"))
    for metric in ("reward_exact", "reward_accuracy", "accuracy"):
        values = series(run, f"eval/{name}/{metric}").values
        if values:
            note = f"from {values[0]:.1%}"
            cards.append((sections.title_of(metric), f"{100 * values[-1]:.1f}", "%", note))
            break
    return cards


def _speed_cards(run: Run) -> list[Card]:
    cards: list[Card] = []
    speed = series(run, "perf/tokens_per_s").values
    if speed:
        wait = series(run, "perf/data_wait").values
        source = "making rollouts" if lookup(run.config, "rollout") else "waiting for data"
        note = f"{wait[-1]:.1%} {source}" if wait else ""
        cards.append(("Tokens per second", number(_median(speed), 3), "", note))
    mfu = series(run, "perf/mfu").values
    if mfu:
        convention = series(run, "perf/mfu_convention").values
        note = f"{100 * _median(convention):.1f} % by 6N + 12LHQT" if convention else ""
        cards.append(("MFU", f"{100 * _median(mfu):.1f}", "%", note))
    n = parameters(run)
    if n:
        vocabulary = lookup(run.config, "model.vocab_size")
        note = f"vocabulary {page.show(vocabulary)}" if vocabulary else ""
        cards.append(("Parameters", number(n, 3), "", note))
    return cards


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def tokens_seen(run: Run) -> float | None:
    """Return the training tokens: as logged, else rows times length."""
    logged = series(run, "train/tokens").values
    if logged:
        return logged[-1]
    batch = lookup(run.config, "train.batch_size")
    length = lookup(run.config, "data.length")
    if run.metrics and isinstance(batch, int) and isinstance(length, int):
        return float(run.metrics[-1]["step"]) * batch * length
    return None


def _epochs(run: Run) -> str:
    rows = run.artifacts.get("rows", {}).get("rows")
    batch = lookup(run.config, "train.batch_size")
    if not rows or not batch or not run.metrics:
        return ""
    return f"{run.metrics[-1]['step'] * batch / rows:.2g} passes over the data"

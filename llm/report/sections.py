# SPDX-License-Identifier: Apache-2.0
"""The parts of a report that are drawn from one run: curves, samples, results, config, hardware."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from llm.models.config import default_fields
from llm.report import charts, page
from llm.report.charts import Level, Line, number
from llm.report.reading import Run, Series, metric_names, series

COLOURS = ("b", "c1", "d", "e")  # evaluations; "a" is training

TITLES = {
    "loss": "Loss",
    "nll": "Negative log-likelihood",
    "accuracy": "Next-token accuracy",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_s": "Tokens per second",
    "mfu": "Model FLOPs utilisation",
    "mfu_convention": "Utilisation by the 6N + 12LHQT convention",
    "data_wait": "Share of time waiting for data",
    "goodput": "Goodput",
    "reward_accuracy": "Reward accuracy",
    "reward_margin": "Reward margin",
    "kl": "KL divergence from the reference",
    "kl_old": "KL divergence from the sampler",
    "reward_exact": "Exact answers",
    "hack_gap": "Reward ahead of gold, in std",
    "length": "Tokens of an answer",
    "truncated": "Answers cut off",
}
# Of the monitors of rollouts: what has happened where one is raised.
SIGNS = {
    "gold": "the reward rises and the gold reward falls",
    "length": "answers have become much longer or shorter",
    "entropy": "answers have lost their variety",
    "kl": "the policy is far from its reference",
}
# Fields of a model that a reader always wants to see.
SIZES = {
    "vocab_size",
    "n_layers",
    "d_model",
    "n_heads",
    "n_kv_heads",
    "d_ff",
    "max_length",
    "norm",
    "position",
    "activation",
    "dtype",
}
# Drawn elsewhere, or of no use as a curve.
NO_CURVE = {
    *("step_seconds", "skipped", "non_finite", "weight", "goodput", "tokens"),
    *("spikes", "spike_loss", "rolled_back_from", "save_seconds", "restarts", "lost_steps"),
    *("programs", "signs", "seconds", "reward_std", "gold", "gold_std"),
    *("equal_groups", "sampler_gap"),
    *(f"sign_{name}" for name in SIGNS),
}
# Charts that come first, where they exist.
FIRST = (
    *("/reward", "/reward_exact", "/loss", "/bits_per_byte", "/reward_accuracy", "/accuracy"),
    *("/reward_margin", "/kl", "/entropy", "/length", "/hack_gap", "/lr", "/grad_norm"),
)


class Panel(NamedTuple):
    """One chart to draw."""

    title: str
    parts: list[tuple[str, str, Series]]  # (label, colour, values)
    levels: list[Level]
    zero: bool  # the y axis starts at zero


def title_of(metric: str) -> str:
    """Return a readable name of a metric's last part."""
    return TITLES.get(metric, metric.replace("_", " ").capitalize())


def eval_names(run: Run) -> list[str]:
    """Return the names of the evaluations that a run logged, in order."""
    names: dict[str, None] = {}
    for key in metric_names(run):
        parts = key.split("/")
        if parts[0] == "eval" and len(parts) >= 3:
            names.setdefault("/".join(parts[1:-1]))
    return list(names)


def panels(run: Run, baselines: Sequence[tuple[str, float]] = ()) -> list[Panel]:
    """Choose the charts of a run, the most telling first.

    Args:
        run: the run.
        baselines: (label, bits per byte) to draw where bits per byte are.
    """
    keys = metric_names(run)
    evals = eval_names(run)
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(evals)}
    groups: dict[str, Panel] = {}
    for key in keys:
        kind, _, rest = key.partition("/")
        metric = rest.rsplit("/", 1)[-1]
        if kind not in ("train", "eval", "perf", "rollout") or metric in NO_CURVE:
            continue
        if kind == "rollout" and metric == "tokens_per_s":
            continue
        values = series(run, key)
        if not values or _says_little(run, key, values):
            continue
        title = title_of(metric)
        label = {"eval": rest.rsplit("/", 1)[0], "rollout": "rollouts"}.get(kind, "train")
        shade = colour[label] if kind == "eval" else "a"
        zero = kind == "perf" or metric == "grad_norm"
        group = f"{kind if kind == 'perf' else ''}/{metric}"
        groups.setdefault(group, Panel(title, [], [], zero)).parts.append((label, shade, values))
    if "/bits_per_byte" in groups:
        groups["/bits_per_byte"].levels.extend(Level(n, v) for n, v in baselines)
    first = [groups.pop(key) for key in FIRST if key in groups]
    return first + list(groups.values())


def _says_little(run: Run, key: str, values: Series) -> bool:
    """Tell whether a curve only repeats the loss (nll, perplexity) or has nothing to show."""
    stem, _, metric = key.rpartition("/")
    if metric == "data_wait":
        return max(values.values) < 0.02
    if metric.startswith("reward_"):  # the only reward of several is the reward
        return values.values == series(run, f"{stem}/reward").values
    if metric not in ("nll", "perplexity"):
        return False
    loss = series(run, f"{stem}/loss").values
    if len(loss) != len(values.values):
        return False
    return metric == "perplexity" or all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)
        for a, b in zip(loss, values.values, strict=True)
    )


def curves(run: Run, key: str, baselines: Sequence[tuple[str, float]] = (), small: int = 12) -> str:
    """Return all charts of a run, switchable between steps and wall time.

    Args:
        run: the run.
        key: tells the switches of several runs on one page apart.
        baselines: see `panels`.
        small: charts to show after the large first one.
    """
    chosen = panels(run, baselines)[: small + 1]
    if not chosen:
        return ""
    switch = (
        f'<input class="axis-choice pick-step" type="radio" name="axis-{escape(key)}" '
        f'id="step-{escape(key)}" checked>'
        f'<input class="axis-choice pick-time" type="radio" name="axis-{escape(key)}" '
        f'id="time-{escape(key)}"><div class="switch">'
        f'<label class="for-step" for="step-{escape(key)}">by step</label>'
        f'<label class="for-time" for="time-{escape(key)}">by wall time</label></div>'
    )
    large = page.panel(chosen[0].title, draw(chosen[0], width=1040, height=330), wide=True)
    rest = "".join(page.panel(p.title, draw(p)) for p in chosen[1:])
    grid = f'<div class="grid2">{rest}</div>' if rest else ""
    return f'<div class="run">{switch}{large}{grid}</div>'


def draw(panel: Panel, width: int = 350, height: int = 190) -> str:
    """Draw one chart twice, over steps and over time, with its legend."""
    out = ""
    for over_time in (False, True):
        lines = [
            Line(
                label=label,
                x=values.times if over_time else values.steps,
                y=values.values,
                colour=shade,
                smooth=label == "train" and "rate" not in panel.title,
                dots=label != "train",
            )
            for label, shade, values in panel.parts
        ]
        drawing = charts.line_chart(
            lines,
            panel.levels,
            title=panel.title,
            over_time=over_time,
            zero=panel.zero,
            width=width,
            height=height,
        )
        if not over_time:
            out += charts.legend(lines, panel.levels)
        out += f'<div class="{"by-time" if over_time else "by-step"}">{drawing}</div>'
    return out


def samples(run: Run, shown: int = 4) -> str:
    """Return generated texts over training: the same prompt at a few steps, the rest folded."""
    if not run.samples:
        return ""
    prompts: dict[str, list[Mapping[str, Any]]] = {}
    for entry in run.samples:
        prompts.setdefault(str(entry.get("prompt", "")), []).append(entry)
    out, folded = [], ""
    for index, (prompt, entries) in enumerate(prompts.items()):
        if index == 4:
            more = "".join(_timeline(p, e[-1:]) for p, e in list(prompts.items())[4:24])
            folded = page.folded("More prompts", more, f"{len(prompts) - 4} more, last step")
            break
        kept = sorted({round(i * (len(entries) - 1) / max(shown - 1, 1)) for i in range(shown)})
        out.append(f"<div>{_timeline(prompt, [entries[i] for i in kept])}</div>")
    return f'<div class="grid2 samples">{"".join(out)}</div>{folded}'


def _timeline(prompt: str, entries: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for entry in entries:
        step = entry.get("step")
        label = f"step {page.show(step)}" if step is not None else ""
        answer = "\n" if entry.get("chat") else ""  # what is no continuation has a line of its own
        answer += str(entry.get("text", ""))[:4000]
        parts.append(page.sample(label, prompt, answer))
    return "".join(parts)


def results(entries: Sequence[Mapping[str, Any]], title_column: str = "task") -> str:
    """Return a table of results with intervals and chance levels, one row per metric."""
    rows = []
    for entry in entries:
        for i, (name, metric) in enumerate(entry["metrics"].items()):
            found = _metric(metric)
            if found is None:
                continue
            task = f"<b>{escape(label(entry))}</b>" if i == 0 else ""
            size = page.show(entry["n"]) if i == 0 and "n" in entry else ""
            rows.append([task, escape(name.replace("_", " ")), *_cells(found), size])
    head = [title_column, "metric", "value", "95 % interval", "", "chance", "n"]
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return page.table(
        [head[i] for i in used],
        [[row[i] for i in used] for row in rows],
        [new for new, old in enumerate(used) if old in (2, 3, 5, 6)],
    )


def compared(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return variants that share their metrics as one table, a row each; "" for other results."""
    names = [tuple(entry["metrics"]) for entry in entries]
    if len(entries) < 2 or len(set(names)) > 1 or len(names[0]) < 2:
        return ""
    rows = []
    for entry in entries:
        cells = [f"<b>{escape(label(entry))}</b>"]
        for name in names[0]:
            found = _metric(entry["metrics"][name])
            text = number(found.value) if found else "–"
            if found and found.low is not None:
                text += f' <span class="no">± {number(found.value - found.low, 2)}</span>'
            cells.append(text)
        rows.append(cells)
    head = ["variant", *(name.replace("_", " ") for name in names[0])]
    return page.table(head, rows, tuple(range(1, len(head))))


class Metric(NamedTuple):
    """A value of a results file with what is known of its uncertainty."""

    value: float
    low: float | None
    high: float | None
    chance: float | None
    proportion: bool


def _metric(entry: Any) -> Metric | None:
    """Read {"value", "stderr" | "interval", "chance"} or a bare number."""
    if isinstance(entry, int | float):
        entry = {"value": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), int | float):
        return None
    value = float(entry["value"])
    low = high = None
    interval, error = entry.get("interval"), entry.get("stderr")
    if isinstance(interval, list | tuple) and len(interval) == 2:
        low, high = float(interval[0]), float(interval[1])
    elif isinstance(error, int | float) and math.isfinite(error) and error > 0:
        low, high = value - 1.96 * error, value + 1.96 * error
    chance = entry.get("chance")
    shape = (0.0 <= value <= 1.0 and interval is not None) or (
        chance is not None and 0 <= chance <= 1
    )
    return Metric(
        value, low, high, float(chance) if isinstance(chance, int | float) else None, bool(shape)
    )


def _cells(metric: Metric) -> list[str]:
    value = f"<b>{number(metric.value)}</b>"
    spread = bar = chance = ""
    if metric.low is not None and metric.high is not None:
        spread = f"{number(metric.low, 3)} – {number(metric.high, 3)}"
        if metric.proportion:
            bar = charts.interval_bar(metric.value, metric.low, metric.high, metric.chance)
    if metric.chance is not None:
        chance = number(metric.chance, 3)
        if metric.low is not None:
            above = metric.low > metric.chance
            word = (
                '<span class="yes">above</span>' if above else '<span class="no">not above</span>'
            )
            chance = f"{chance} {word}"
    return [value, spread, bar, chance]


def best_metric(entry: Mapping[str, Any], *names: str) -> Metric | None:
    """Return the first of the named metrics that a results entry has."""
    for name in names:
        if name in entry["metrics"]:
            return _metric(entry["metrics"][name])
    return None


def baselines(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Return (label, bits per byte) of the results that describe a baseline.

    Those are entries with "baseline": true or a task whose name starts with "baseline" or tells
    of an n-gram model.
    """
    found = []
    for entry in entries:
        if not is_baseline(entry):
            continue
        metric = best_metric(entry, "bits_per_byte", "bpb")
        if metric:
            found.append((label(entry), metric.value))
    return found


def label(entry: Mapping[str, Any]) -> str:
    """Return how to call a results entry."""
    return str(entry.get("label") or entry["task"]).replace("_", " ")


def is_baseline(entry: Mapping[str, Any]) -> bool:
    """Tell whether a results entry describes a baseline, not the model."""
    names = f"{entry['task']} {entry.get('kind', '')}".lower()
    return bool(entry.get("baseline")) or any(
        word in names for word in ("baseline", "ngram", "n-gram", "kneser")
    )


def short_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the model's fields that are at their defaults, and empty evaluations of nothing."""
    shown = dict(config)
    model = config.get("model")
    if isinstance(model, Mapping):
        defaults = default_fields()
        kept = {k: v for k, v in model.items() if k in SIZES or defaults.get(k, ...) != v}
        shown["model"] = {**kept, "all others": "default"} if len(kept) < len(model) else kept
    return shown


def hardware(run: Run) -> str:
    """Return devices, versions and command, as `environment.json` has them."""
    environment = dict(run.artifacts.get("environment", {}))
    versions = environment.pop("versions", {})
    parts = page.definitions({k.replace("_", " "): v for k, v in environment.items()})
    if isinstance(versions, Mapping) and versions:
        parts += page.definitions(versions)
    return parts


def warnings(run: Run) -> str:
    """Say what is wrong with the run or its files, if anything is."""
    out = []
    if run.broken:
        out.append(f"Could not be read and left out: {', '.join(run.broken)}.")
    bad = sum(row.get("train/non_finite") or 0 for row in run.metrics)
    skipped = series(run, "train/skipped").values
    if bad or (skipped and skipped[-1]):
        count = max(bad, skipped[-1] if skipped else 0)
        out.append(
            f"{count:.0f} step{'s' if count != 1 else ''} had a loss or gradient that was not "
            "finite; those updates were skipped."
        )
    spikes = sum(row.get("train/spikes") or 0 for row in run.metrics)
    backs = [row for row in run.metrics if "train/rolled_back_from" in row]
    if spikes:
        out.append(f"The loss or gradient spiked at {spikes:.0f} step{'s' if spikes != 1 else ''}.")
    for row in backs:
        out.append(
            f"A spike at step {row['train/rolled_back_from']:.0f} sent training back to step "
            f"{row['step']:.0f}; the data from there on were left out."
        )
    for name, meaning in SIGNS.items():
        raised = series(run, f"rollout/sign_{name}").steps
        if raised:
            out.append(f"From step {page.show(int(raised[0]))} on a monitor says: {meaning}.")
    return "".join(f'<p class="flag">{escape(line)}</p>' for line in out)

# SPDX-License-Identifier: Apache-2.0
"""A model card from what the runs left on disk: facts that were recorded, no blanks to fill."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm import files
from llm.core import checkpoint_files
from llm.report.reading import Run, lookup, read_run

# What a section calls a training stage, by its objective.
OBJECTIVES = {
    "clm": "next-token prediction",
    "sft": "supervised fine-tuning on chats",
    "dpo": "direct preference optimisation (DPO)",
    "ipo": "identity preference optimisation (IPO)",
    "reward": "a reward model of preferences",
    "grpo": "reinforcement learning from rewards (GRPO)",
    "rloo": "reinforcement learning from rewards (RLOO)",
    "reinforce_pp": "reinforcement learning from rewards (REINFORCE++)",
    "ppo": "reinforcement learning from rewards (PPO)",
}


def write_model_card(
    out: Any,
    *,
    name: str,
    training: Sequence[Any],
    evaluation: Any = "",
    compression: Any = "",
    corpus: Any = "",
    licence: str = "",
) -> Any:
    """Write MODEL_CARD.md.

    Args:
        out: the file to write.
        name: of the model.
        training: workdirs of the training stages in their order; the last made the model.
        evaluation: workdir of the eval stage, "" if it was not evaluated.
        compression: workdir of the compress stage whose variant is published, "" if none.
        corpus: workdir of the corpus stage (with datasheet.md), "" if not known.
        licence: of the weights; "" says that none was declared.

    Returns:
        The path of the card.

    Raises:
        StorageError: it cannot be written.
    """
    stages = [read_run(folder) for folder in training]
    results = read_run(evaluation).results if evaluation else []
    parts = [
        f"# {name}",
        _overview(stages, compression, licence),
        _training(stages),
        _data(stages, corpus),
        _evaluation(results),
        _compression(read_run(compression).results if compression else []),
        _limits(stages, results),
        _use(stages[-1] if stages else None, compression),
    ]
    target = files.path(out)
    files.write_atomic(target, "\n\n".join(part for part in parts if part) + "\n")
    return target


def _overview(stages: Sequence[Run], compression: Any, licence: str) -> str:
    model = stages[-1].config.get("model", {}) if stages else {}
    rows = []
    if isinstance(model, Mapping) and "n_layers" in model:
        kind = str(model.get("architecture", "decoder")).replace("_", "-")
        rows += [
            ("Architecture", f"transformer {kind}, {_shape(model)}"),
            ("Context", f"{model['max_length']:,} tokens"),
            ("Vocabulary", f"{model['vocab_size']:,} tokens{_tokenizer(stages[-1])}"),
        ]
    parameters = _parameters(stages)
    if parameters:
        rows.insert(0, ("Parameters", f"{parameters:,}"))
    if compression:
        quantization = read_run(compression).config.get("quantization", {})
        method = quantization.get("method") if isinstance(quantization, Mapping) else None
        rows.append(("Weights", f"{method} (see Compression)" if method else "not quantised"))
    rows.append(("Licence", licence or "no licence has been declared for these weights"))
    return _table(("", ""), rows)


def _shape(model: Mapping[str, Any]) -> str:
    text = f"{model['n_layers']} layers, width {model['d_model']}, {model['n_heads']} heads"
    if model.get("n_kv_heads", model["n_heads"]) != model["n_heads"]:
        text += f" sharing {model['n_kv_heads']} key-value heads"
    if model.get("n_experts"):
        text += f", {model['n_experts']} experts of which {model['experts_per_token']} per token"
    return text


def _tokenizer(run: Run) -> str:
    kind = lookup(run.artifacts, "tokenizer.kind")
    return f", {kind} tokenizer" if kind else ""


def _parameters(stages: Sequence[Run]) -> int:
    """Count the parameters of the newest checkpoint, by its manifest; 0 if there is none."""
    for run in reversed(stages):
        for step in reversed(checkpoint_files.survey(run.path).steps):
            root = checkpoint_files.root(run.path)
            manifest = checkpoint_files.read_manifest(root / str(step))
            if manifest is not None and manifest.entries.get("params"):
                return sum(math.prod(leaf.shape) for leaf in manifest.entries["params"])
    return 0


def _training(stages: Sequence[Run]) -> str:
    rows = []
    for run in stages:
        objective = str(lookup(run.config, "objective.name", ""))
        steps = int(run.metrics[-1]["step"]) if run.metrics else 0
        batch = int(lookup(run.config, "train.batch_size", 0))
        tokens = round(steps * batch * _tokens_per_row(run))
        rows.append(
            (
                run.name,
                OBJECTIVES.get(objective, objective or "–"),
                f"{steps:,}",
                f"{tokens:,}" if tokens else "–",
                str(lookup(run.config, "optimizer.name", "–")),
            )
        )
    if not rows:
        return ""
    head = ("run", "objective", "steps", "tokens read", "optimizer")
    note = "Tokens read are steps × rows × mean tokens of a row, padding left out."
    return f"## Training\n\n{_table(head, rows)}\n\n{note}"


def _tokens_per_row(run: Run) -> float:
    """Return the mean number of real tokens of a training row, 0 where that is not recorded."""
    found = sorted((run.path / "rows").glob("*/train/manifest.json"))
    manifests = [files.read_json(file) for file in found]
    rows = sum(int(m.get("rows", 0)) for m in manifests)
    return sum(int(m.get("tokens", 0)) for m in manifests) / rows if rows else 0.0


def _data(stages: Sequence[Run], corpus: Any) -> str:
    lines = []
    for run in stages:
        source = lookup(run.config, "data.source")
        place = lookup(run.config, "data.path")
        if source:
            lines.append(f"- {run.name}: {source}" + (f" from `{place}`" if place else ""))
    if corpus:
        manifest = read_run(corpus).artifacts.get("manifest", {})
        shards = manifest.get("shards", []) if isinstance(manifest, Mapping) else []
        for split in dict.fromkeys(str(s.get("split", "all")) for s in shards):
            mine = [s for s in shards if str(s.get("split", "all")) == split]
            documents = sum(int(s.get("count", 0)) for s in mine)
            size = sum(int(s.get("bytes", 0)) for s in mine)
            lines.append(f"- corpus, {split}: {documents:,} documents, {size:,} bytes of text")
        sheet = files.path(corpus) / "datasheet.md"
        if sheet.exists():
            lines.append(f"- datasheet of the corpus: `{sheet}`")
    return "## Data\n\n" + "\n".join(lines) if lines else ""


def _evaluation(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in results:
        for name, metric in entry["metrics"].items():
            if not isinstance(metric, Mapping) or not _finite(metric.get("value")):
                continue
            rows.append(
                (
                    str(entry.get("label") or entry["task"]),
                    name,
                    f"{metric['value']:.4g}",
                    _interval(metric),
                    f"{metric['chance']:.3g}" if _finite(metric.get("chance")) else "–",
                    str(entry.get("n", "–")),
                )
            )
    if not rows:
        return "## Evaluation\n\nThis model has not been evaluated."
    head = ("task", "metric", "value", "95 % interval", "chance", "n")
    return f"## Evaluation\n\n{_table(head, rows)}"


def _interval(metric: Mapping[str, Any]) -> str:
    """Return the interval: the recorded one, else 1.96 standard errors to either side."""
    given, error = metric.get("interval"), metric.get("stderr")
    if isinstance(given, list | tuple) and len(given) == 2:
        return f"{given[0]:.4g} – {given[1]:.4g}"
    if _finite(error) and error:
        low, high = metric["value"] - 1.96 * error, metric["value"] + 1.96 * error
        return f"{low:.4g} – {high:.4g}"
    return "–"


def _compression(results: Sequence[Mapping[str, Any]]) -> str:
    names = ("bits_per_byte", "bits_per_byte_change", "top1_agreement", "bytes_in_memory")
    rows = []
    for entry in results:
        values = [entry["metrics"].get(name, {}).get("value") for name in names]
        if all(_finite(value) for value in values):
            bits, change, same, size = values
            rows.append(
                (str(entry["task"]), f"{bits:.4f}", f"{change:+.4f}", f"{same:.3f}", f"{size:,}")
            )
    if not rows:
        return ""
    head = ("weights", "bits per byte", "change", "same likeliest token", "bytes in memory")
    return f"## Compression\n\n{_table(head, rows)}"


def _limits(stages: Sequence[Run], results: Sequence[Mapping[str, Any]]) -> str:
    """Say what the records show the model cannot do, or do not show."""
    lines = [
        "- It has been tested only on what the evaluation table lists; other languages, subjects "
        "and uses have not been measured.",
        "- No test of bias, toxicity or factual accuracy has been run on it."
        if not any("bias" in str(entry.get("kind", entry["task"])) for entry in results)
        else "- Its bias tests cover only the groups and phrasings of their data sets.",
        "- It can state falsehoods fluently. Do not use it where an error can do harm.",
    ]
    for entry in results:
        for name, metric in entry["metrics"].items():
            if isinstance(metric, Mapping) and metric.get("above_chance") is False:
                task = str(entry.get("label") or entry["task"])
                lines.append(f"- On {task} ({name}) it is not distinguishable from chance.")
    broken = [name for run in stages for name in run.broken]
    if broken:
        lines.append(f"- Some records of its training are damaged: {', '.join(broken)}.")
    return "## Limits\n\n" + "\n".join(lines)


def _use(last: Run | None, compression: Any) -> str:
    if last is None:
        return ""
    place = files.path(compression) if compression else last.path
    return (
        "## Use\n\n```python\nimport llm\n\n"
        f'lm = llm.load("{place}")\nprint(lm.generate("Once", max_tokens=32)[0])\n```'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

# SPDX-License-Identifier: Apache-2.0
"""The compress stage: make a model smaller, say what it cost, write the variant that is kept."""

import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from llm import files
from llm.compress import measure, methods, quantize
from llm.compress.calibrate import Calibration
from llm.core import checkpoint
from llm.core import config as configs
from llm.core.trees import count
from llm.errors import ConfigError, nearest
from llm.generate.language_model import LanguageModel, load


def run(config: Any, workdir: str) -> list[dict[str, Any]]:
    """Compress a model in every way listed, measure each, and keep one.

    Args:
        config: `model` (what `llm.load` takes), `variants` {name: {"method", ...}} (see
            `methods.METHODS`), `keep` (the variant that is written), `measure` and, for methods
            that need it, `calibration` (see `texts`).
        workdir: receives the kept variant as a checkpoint that `llm.load` opens, and
            results/compression.json with a table of quality and size.

    Returns:
        One result per variant.

    Raises:
        ConfigError: an unknown method or option, or nothing to keep.
    """
    variants = check(config)
    key = files.hash_json([configs.to_dict(config), _identity(str(config.model))])
    target = files.path(workdir)
    done = target / "results" / "compression.json"
    if done.exists() and _finished(target, key):
        found = files.read_json(done)
        show(str(config.model), found)
        return found
    lm = load(config.model)
    chosen, length = _chosen(config.measure, "measure")
    reference = measure.losses(lm, chosen)
    axes = quantize.parameter_axes(lm.model)
    calibration = functools.cache(
        lambda: Calibration(lm, *_chosen(config.calibration, "calibration"))
    )
    original = methods.Original(lm, axes, calibration)
    found = []
    for name, (method, options) in variants.items():
        made = methods.METHODS[method](original, **options)
        other = measure.runnable(lm, made.params, made.config)
        metrics = measure.measure(lm, other, chosen, reference, length)
        metrics["bytes_in_memory"] = {"value": measure.memory_bytes(made.params), "stderr": 0.0}
        metrics["zeros"] = {"value": measure.zeros(made.params), "stderr": 0.0}
        if name == config.keep:
            settings = {**configs.to_dict(config), "key": key}
            write(lm, made, {"method": method, **options}, workdir, settings)
            size = measure.folder_bytes(target / "checkpoints")
        else:
            size = measure.disk_bytes(made.params, _made(target))
        metrics["bytes_on_disk"] = {"value": size, "stderr": 0.0}
        change = metrics["bits_per_byte_change"]["value"]
        print(f"{len(found) + 1}/{len(variants)} {name}: {change:+.4f} bits per byte", flush=True)
        found.append({"task": name, "kind": "compression", "n": len(chosen), "metrics": metrics})
    files.write_json(done, found)
    files.write_json(target / "summary.json", summary(lm, found, str(config.keep)))
    show(str(config.model), found)
    return found


def texts(
    documents: str, split: str | None = "validation", limit: int = 100, length: int = 128
) -> list[str]:
    """Read the texts that variants are measured on, or that a method learns from.

    Args:
        documents: what `llm.text.records.read_documents` reads.
        split: of a corpus.
        limit: texts at most; 0 for all.
        length: tokens of each that are compared position by position, or of a calibration row.
    """
    from llm.text.records import read_documents

    found = read_documents(documents, split or None)
    return [d["text"] for d in (islice(found, limit) if limit else found)]


def _chosen(section: Any, name: str) -> tuple[list[str], int]:
    """Return the texts of a section and how many tokens of them are read together."""
    options = configs.bind(texts, section, name)
    return texts(**options), int(options.get("length", 128))


def check(config: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return {variant: (method, options)}, each checked."""
    configs.bind(texts, config.measure, "measure")
    variants = {}
    for name in config.variants:
        section = dict(config.variants[name])
        method = str(section.pop("method", ""))
        builder = configs.choose(method, methods.METHODS, f"method of config.variants.{name}:")
        options = configs.bind(builder, section, f"variants.{name}", given=methods.GIVEN)
        variants[name] = method, options
        if method in methods.CALIBRATED:
            configs.bind(texts, config.get("calibration", {}), "calibration")
    if config.keep not in variants:
        hint = nearest(config.keep, list(variants))
        raise ConfigError(
            f"config.keep={config.keep!r} is no variant.{hint}",
            f"Variants: {', '.join(variants)}.",
        )
    return variants


def write(
    lm: LanguageModel,
    variant: methods.Variant,
    options: Mapping[str, Any],
    workdir: str,
    settings: Mapping[str, Any],
) -> None:
    """Write a variant as a checkpoint with its tokenizer and config.json.

    Checkpoints of an earlier compression are replaced; config.json comes last.
    """
    place = files.path(workdir)
    (place / "config.json").unlink(missing_ok=True)
    if (place / "checkpoints").exists():
        shutil.rmtree(place / "checkpoints")
    extra = {}
    if lm.tokenizer is not None:
        lm.tokenizer.save(place / "tokenizer")
        extra["tokenizer_hash"] = lm.tokenizer.hash
    with checkpoint.Checkpointer(place / "checkpoints", asynchronous=False) as writer:
        writer.save(lm.step or 0, {"params": variant.params}, extra)
    content: dict[str, Any] = {
        "model": dataclasses.asdict(variant.config),
        "generate": {"starts_texts": lm.starts_texts},
        "compress": dict(settings),
    }
    if variant.quantized:
        content["quantization"] = dict(options)
    files.write_json(place / "config.json", content)


def summary(lm: LanguageModel, found: Sequence[Mapping[str, Any]], keep: str) -> dict[str, Any]:
    """Return the stage's one number and its facts, for the report."""
    kept = next(entry for entry in found if entry["task"] == keep)["metrics"]
    whole = 4 * count(lm.params)
    ratio = whole / kept["bytes_in_memory"]["value"]
    change = kept["bits_per_byte_change"]["value"]
    facts = [
        {"what": "Kept", "value": keep},
        {"what": "Bytes in memory", "value": kept["bytes_in_memory"]["value"]},
        {"what": "Bytes in float32", "value": whole},
        {"what": "Same likeliest token", "value": kept["top1_agreement"]["value"]},
    ]
    note = f"smaller than float32, {change:+.4f} bits per byte"
    return {"headline": {"value": ratio, "unit": "×", "note": note}, "facts": facts}


def show(title: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of quality and size."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    headings = ("variant", "bits/byte", "change", "same top token", "KL bits", "zeros", "memory",
                "disk")  # fmt: skip
    for heading in headings:
        side: Literal["left", "right"] = "left" if heading == "variant" else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    by_size = sorted(found, key=lambda entry: -entry["metrics"]["bytes_in_memory"]["value"])
    for entry in by_size:
        metrics = entry["metrics"]
        shown = [
            f"{metrics[name]['value']:{form}} ± {metrics[name]['stderr']:.2g}"
            for name, form in (
                ("bits_per_byte", ".4f"),
                ("bits_per_byte_change", "+.5f"),
                ("top1_agreement", ".4f"),
                ("kl_bits_per_token", ".2g"),
            )
        ]
        sizes = [_size(metrics[name]["value"]) for name in ("bytes_in_memory", "bytes_on_disk")]
        zeros = f"{metrics['zeros']['value']:.0%}"
        table.add_row(str(entry["task"]), *shown, zeros, *sizes)
    Console(width=max(110, Console().width)).print(table)


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def _made(place: Any) -> str:
    place.mkdir(parents=True, exist_ok=True)
    return str(place)


def _identity(source: str) -> list[Any]:
    """Identify a model by the names, sizes and times of its weight files."""
    path = Path(source)
    kept = ("manifest.json", "config.json", ".safetensors", ".gguf")
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [
        (str(p), p.stat().st_size, p.stat().st_mtime_ns)
        for p in found
        if p.exists() and p.name.endswith(kept)
    ]


def _finished(place: Any, key: str) -> bool:
    """Tell whether a workdir holds the outcome of the same settings on the same model."""
    config = place / "config.json"
    if not config.exists() or not checkpoint.list_steps(place):
        return False
    return files.read_json(config).get("compress", {}).get("key") == key

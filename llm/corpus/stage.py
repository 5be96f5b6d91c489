# SPDX-License-Identifier: Apache-2.0
"""The corpus stage: documents in, clean and split shards with a funnel and a report out."""

import inspect
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from llm import files
from llm.corpus import (
    bias,
    clean,
    engine,
    filters,
    funnel,
    inject,
    output,
    report,
    select,
    sources,
    summary,
    units,
)
from llm.errors import ConfigError, DataError, unknown
from llm.text import normalize, pii

VERSION = 4  # part of every fingerprint: raise it when the cleaning's code changes its results
NEAR = ("off", "group", "drop")
ENGINES = ("local", "beam")
KEEP = ("longest", "best", "first")


def run(config: Any, workdir: str, console: Console | None = None) -> dict[str, Any]:
    """Make a corpus; finished work in `workdir` is kept and checked, not repeated.

    Args:
        config: sections source{name, …}, normalise, filters{names, <filter>}, dedup, pii,
            bias, split, engine, inject and seed; see configs/corpus/.
        workdir: local folder for documents/, funnel.json, report.html and the working files.
        console: where progress and results go.

    Returns:
        the summary also stored in funnel.json.

    Raises:
        ConfigError: a name or an option is not known.
        DataError: there is no input, or nothing is left of it.
    """
    console = console or Console()
    started = time.perf_counter()
    settings = resolve(config)
    root = _local(workdir)
    shards = _plan(settings)
    read = filters.hashes(**settings["filters"])
    read.update(output.hashes(settings["dedup"], _signing(settings)))
    config_hash = files.hash_json([VERSION, {**settings, "engine": _lasting(settings)}, read])
    facts = {
        "source": settings["source"]["name"],
        "config_hash": config_hash,
        "input_hash": shards.input_hash,
    }
    for folder in (root, root / "documents"):
        engine.clean_temporary(folder)
    done = _finished(root, facts)
    if done is not None:
        console.print(f"Corpus in {root} is complete and unchanged; nothing to do.")
        summary.show(console, done, root)
        return done
    workers = settings["engine"]["workers"]
    summary.announce(console, settings, shards.notes, len(shards.shards), workers, root)
    results = _clean(settings, shards, root, console)
    earlier = [output.kept(place) for place in settings["dedup"]["against"]]
    everything = select.load(root / "work" / "clean", len(shards.shards), earlier)
    chosen = select.select(
        everything,
        **_selection_options(settings),
        seed=settings["seed"],
        search=_search(settings["engine"], root),
    )
    corpus = select.own(everything)
    written = _write(settings, root, corpus, chosen, console)
    table = funnel.build(settings, results, corpus, chosen, shards.notes, written)
    table["seconds"] = round(time.perf_counter() - started, 2)
    table["output"] = written
    table["near_copies"] = output.examples(root / "work", corpus, chosen)
    table.update(facts)
    lists = {
        name: [row for result in results for row in result[name]] for name in ("truth", "rejected")
    }
    _finish(root, table, facts, written, lists)
    summary.show(console, table, root)
    return table


def resolve(config: Any) -> dict[str, Any]:
    """Turn a config into plain sections with every option bound to what takes it.

    Raises:
        ConfigError: a section, option or name is not known, or a value makes no sense.
    """
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    for name in given:
        if name not in SECTIONS:
            raise unknown("corpus config section", name, SECTIONS)
    settings: dict[str, Any] = {"seed": int(given.get("seed", 0))}
    for name, builder in SECTIONS.items():
        if name != "seed":
            settings[name] = _bind(name, builder, given.get(name) or {})
    source = settings["source"]
    name = source.get("name", "pydocs")
    options = {key: value for key, value in source.items() if key != "name"}
    settings["source"] = {"name": name, **_bind("source", sources.get(name).plan, options)}
    return settings


def _filters(names: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    filters.build(names, **options)
    # What is not used must not make cleaned shards stale.
    return {"names": tuple(names), **{n: options[n] for n in names if n in options}}


def _dedup(
    url: bool = False,
    exact: bool = True,
    near: str = "drop",
    threshold: float = 0.7,
    keep: str = "longest",
    bands: int = 14,
    rows: int = 8,
    n_gram: int = 5,
    repeats: Mapping[str, int] | None = None,
    min_run_chars: int = 40,
    min_left_chars: int = 100,
    against: tuple[str, ...] = (),
) -> dict[str, Any]:
    repeats, against = dict(repeats or {}), tuple(against)
    for unit, run in repeats.items():
        if unit not in units.UNITS:
            raise unknown("unit of dedup.repeats", unit, units.UNITS)
        if not isinstance(run, int) or run < 0:
            raise ConfigError(
                f"dedup.repeats.{unit} is {run!r}.", "Give a number of units; 0 looks for none."
            )
    if near not in NEAR:
        raise unknown("dedup.near", near, NEAR)
    if keep not in KEEP:
        raise unknown("dedup.keep", keep, KEEP)
    if not 0 < threshold <= 1 or min(bands, rows, n_gram) < 1:
        raise ConfigError(
            f"dedup has threshold={threshold}, bands={bands}, rows={rows}, n_gram={n_gram}.",
            "The threshold lies in (0, 1]; the others are positive.",
        )
    return dict(locals())


def _pii(types: tuple[str, ...] = ("email",), style: str = "label", seed: int = 0) -> dict:
    pii.check(tuple(types), style)
    return {"types": tuple(types), "style": style, "seed": seed}


def _bias(
    count: bool = False, window: int = 10, augment: float = 0.0, balance: float = 0.0
) -> dict[str, Any]:
    bias.check(count, window, augment, balance)
    return {"count": count, "window": window, "augment": augment, "balance": balance}


def _split(validation: float = 0.02, by_group: bool = True) -> dict[str, Any]:
    if not 0 <= validation < 1:
        raise ConfigError(f"split.validation is {validation}.", "Choose a share from 0 to 1.")
    return {"validation": validation, "by_group": by_group}


def _engine(
    name: str = "local",
    workers: int = 2,
    shard_bytes: int = 8_000_000,
    options: tuple[str, ...] = (),
) -> dict[str, Any]:
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if workers < 1 or shard_bytes < 1:
        raise ConfigError(
            f"engine has workers={workers}, shard_bytes={shard_bytes}.", "Both are at least 1."
        )
    return {
        "name": name,
        "workers": workers,
        "shard_bytes": shard_bytes,
        "options": tuple(options),
    }


def _inject(kinds: tuple[str, ...] = (), rate: float = 0.0) -> dict[str, Any]:
    inject.check(tuple(kinds), rate)
    return {"kinds": tuple(kinds), "rate": rate}


def _normalise(**options: Any) -> dict[str, Any]:
    return normalize.options(**options)._asdict()


def _source(name: str = "pydocs", **options: Any) -> dict[str, Any]:
    return {"name": name, **options}


SECTIONS: dict[str, Callable[..., Any]] = {
    "seed": int,
    "source": _source,
    "normalise": _normalise,
    "filters": _filters,
    "pii": _pii,
    "dedup": _dedup,
    "bias": _bias,
    "split": _split,
    "engine": _engine,
    "inject": _inject,
}


def _bind(section: str, builder: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against a builder's signature; return them with its defaults."""
    parameters = inspect.signature(builder).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in parameters and not open_ended:
            raise unknown(f"option of {section}.{key}", key, parameters)
    if section == "source" and builder is not _source:
        defaults = {p.name: p.default for p in parameters.values()}
        return {**defaults, **options}
    return builder(**options)


def _local(workdir: str) -> Path:
    if "://" in str(workdir):
        raise ConfigError(
            f"The corpus stage writes to a local folder, not to {workdir}.",
            "Use a local --workdir and copy its documents/ folder.",
        )
    return Path(workdir)


def _lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the engine's options that change the output: which engine runs does not."""
    return {"shard_bytes": settings["engine"]["shard_bytes"]}


def _plan(settings: dict[str, Any]) -> sources.Plan:
    source = dict(settings["source"])
    plan = sources.get(source.pop("name")).plan(**source)
    if not plan.shards:
        raise DataError("The source has no shards.", "Check source.path.")
    return plan


def _finished(root: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return the stored summary when the same corpus already lies here, whole."""
    manifest_path, funnel_path = root / "documents" / "manifest.json", root / "funnel.json"
    if not (manifest_path.exists() and funnel_path.exists() and (root / "report.html").exists()):
        return None
    manifest, stored = files.read_json(manifest_path), files.read_json(funnel_path)
    if any(part.get(key) != facts[key] for key in facts for part in (manifest, stored)):
        return None
    for shard in manifest["shards"]:
        file = root / "documents" / shard["file"]
        if not file.exists() or files.hash_file(file) != shard["sha"]:
            return None
    return stored


def _clean(
    settings: dict[str, Any], shards: sources.Plan, root: Path, console: Console
) -> list[engine.Result]:
    plan = {
        **{
            name: settings[name]
            for name in ("seed", "normalise", "filters", "pii", "inject", "bias")
        },
        "source": settings["source"]["name"],
        "dedup": settings["dedup"],
    }
    # What only later steps use must not make cleaned shards stale.
    shaping = {**plan, "dedup": _signing(settings), "units": clean.measured(plan["dedup"])}
    shaping["bias"] = {**plan["bias"], "augment": 0, "balance": bool(plan["bias"]["balance"])}
    shaping["files"] = filters.hashes(**settings["filters"])
    tasks = [
        {
            "index": index,
            "shard": shard,
            "plan": plan,
            "fingerprint": files.hash_json([VERSION, shaping, index, shard["input_hash"],
                                            shard.get("limit"), shard.get("fields")]),
        }
        for index, shard in enumerate(shards.shards)
    ]  # fmt: skip
    results = engine.run(
        "llm.corpus.clean:clean_shard",
        tasks,
        root / "work" / "clean",
        engine=settings["engine"],
        label="clean",
        console=console,
    )
    if not sum(result["documents"] for result in results):
        raise DataError(
            f"The source {settings['source']['name']} gave no document.",
            "Check source.path and source.text_field, or choose other packages.",
        )
    return results


def _search(chosen: dict[str, Any], root: Path) -> select.Search:
    if chosen["name"] == "local":
        return select.LOCAL
    from llm.corpus import beam

    return beam.search(root / "work" / "copies", chosen["options"])


def _signing(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what signatures depend on: corpora are comparable where this is equal."""
    dedup = settings["dedup"]
    shared = {key: dedup[key] for key in ("bands", "rows", "n_gram")}
    return {**shared, "signed": dedup["near"] != "off"}


def _selection_options(settings: dict[str, Any]) -> dict[str, Any]:
    dedup = settings["dedup"]
    shared = ("url", "exact", "near", "threshold", "keep", "min_run_chars", "min_left_chars")
    return {
        **{key: dedup[key] for key in shared},
        "repeats_of": dedup["repeats"],
        "balance": settings["bias"]["balance"],
        **settings["split"],
    }


def _write(
    settings: dict[str, Any],
    root: Path,
    corpus: select.Corpus,
    chosen: select.Selection,
    console: Console,
) -> list[dict[str, Any]]:
    """Write the output shards and return their descriptions, in order."""
    folder = root / "work" / "write"
    digest = output.save_selection(folder, chosen, corpus.starts)
    clean = sorted((root / "work" / "clean").glob("[0-9]*.json"))
    inputs = files.hash_json([files.read_json(path)["result"]["files"] for path in clean])
    tasks = output.plan(
        chosen, corpus.columns["size"], corpus.starts, settings["engine"]["shard_bytes"]
    )
    if not tasks:
        raise DataError(
            "The filters dropped every document.",
            "See work/clean/*.json for the reasons; loosen --config.filters or drop some names.",
        )
    for task in tasks:
        task["augment"], task["seed"] = settings["bias"]["augment"], settings["seed"]
        task["fingerprint"] = files.hash_json([VERSION, task, digest, inputs])
    results = engine.run(
        "llm.corpus.output:write_split",
        tasks,
        folder,
        engine=settings["engine"],
        label="write",
        console=console,
    )
    return [result["shard"] for result in results]


def _finish(
    root: Path,
    table: dict[str, Any],
    facts: dict[str, Any],
    written: list[dict[str, Any]],
    lists: dict[str, list[dict[str, Any]]],
) -> None:
    """Write the summary files; the manifest, which marks the corpus complete, comes last.

    truth.jsonl holds what was planted and what became of it; rejected.jsonl where every corrupt
    record lies and why it was not read.
    """
    files.write_json(root / "funnel.json", table)
    files.write_atomic(root / "report.html", report.render(table))
    for name, rows in lists.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files.write_atomic(root / f"{name}.jsonl", text.encode("utf-8", "replace"))
    numbers = {f"corpus/{k}": v for k, v in table.items() if isinstance(v, int | float)}
    files.write_atomic(root / "metrics.jsonl", json.dumps(numbers) + "\n")
    output.write_manifest(root / "documents", written, facts)

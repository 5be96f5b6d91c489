# SPDX-License-Identifier: Apache-2.0
"""The Beam engine: the functions of the local engine, run by Apache Beam.

Shards are elements, and copies are found by GroupByKey. Outputs are the same files with the same
bytes, so a run may be begun by one engine and ended by another. Workers read and write the workdir:
on several machines it lies on a file system that all of them see.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm import files
from llm.corpus import cluster, engine, select
from llm.errors import ConfigError

ERROR = ".error-{:05d}.json"
INPUTS = "inputs.json"  # where the shards' files lie, beside rank.npy and alive.npy


def results(
    function: str, todo: list[engine.Task], folder: Path, options: Sequence[str]
) -> Iterator[tuple[int, engine.Result]]:
    """Run a function on tasks as `engine.pool` does, each in a Beam worker."""
    beam = _beam()
    with _pipeline(options) as pipeline:
        _ = (
            pipeline
            | beam.Create(todo)
            | beam.Reshuffle()
            | beam.Map(_work, function=function, folder=str(folder))
        )
    for task in todo:
        failed = folder / ERROR.format(task["index"])
        if failed.exists():
            answer = files.read_json(failed)
            failed.unlink()
            engine.unwrap(answer)
        result = engine.finished(folder, task)
        if result is None:
            raise ConfigError(
                f"Beam ended without the shard {task['index']} in {folder}.",
                "The workers must see the workdir: use a shared file system.",
            )
        yield task["index"], result


def search(folder: Path, options: Sequence[str]) -> select.Search:
    """Return a search for copies that groups by key in Beam.

    Args:
        folder: for working files.
        options: of the pipeline.
    """
    return select.Search(
        functools.partial(_equal, folder=folder, options=options),
        functools.partial(_near, folder=folder, options=options),
    )


def _work(task: engine.Task, function: str, folder: str) -> None:
    """Run one task; its result is its manifest, and an error for the user a file beside it."""
    from apache_beam.metrics import Metrics

    answer = engine.work(function, task, folder)
    if "error" in answer:
        files.write_json(Path(folder) / ERROR.format(task["index"]), answer)
        return
    for name in ("documents", "bytes"):
        Metrics.counter("corpus", name).inc(answer["result"][name])


def _equal(
    corpus: select.Corpus,
    rank: np.ndarray,
    alive: np.ndarray,
    what: str,
    *,
    folder: Path,
    options: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Join documents of equal text or address to the best-ranked of them."""
    keys = (_equal_keys, what)
    found = _grouped(corpus, rank, alive, folder, options, keys, _first_of, 0.0)
    return found[0], found[1]


def _near(
    corpus: select.Corpus,
    rank: np.ndarray,
    alive: np.ndarray,
    similar: Any,
    *,
    folder: Path,
    options: Sequence[str],
) -> Iterator[select.Portion]:
    """Compare the documents of each band's buckets; every pair is told once."""
    left, right, same = _grouped(
        corpus, rank, alive, folder, options, (_band_keys,), _compared, similar.threshold
    )
    similar.remember(left, right, same.astype(bool))
    yield left, right, same.astype(bool)


def _grouped(
    corpus: select.Corpus,
    rank: np.ndarray,
    alive: np.ndarray,
    folder: Path,
    options: Sequence[str],
    keys: tuple[Any, ...],
    pairs: Any,
    threshold: float,
) -> np.ndarray:
    """Group documents by key and return the sorted distinct pairs of all groups, int64 [3, m]."""
    beam = _beam()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("pairs-*"):
        old.unlink()
    np.save(folder / "rank.npy", rank)
    np.save(folder / "alive.npy", alive)
    files.write_json(folder / INPUTS, [[str(place), index] for place, index in corpus.places])
    token = files.hash_json([files.hash_file(folder / name) for name in ("rank.npy", "alive.npy")])
    where = (str(folder), token)
    with _pipeline(options) as pipeline:
        _ = (
            pipeline
            | beam.Create(range(len(corpus.places)))
            | beam.Reshuffle()
            | beam.FlatMap(keys[0], where, *keys[1:])
            | "buckets" >> beam.GroupByKey()
            | beam.FlatMap(pairs, where, threshold)
            | "distinct" >> beam.GroupByKey()
            | beam.Map(_line)
            | beam.io.WriteToText(str(folder / "pairs"))
        )
    lines = [line for file in folder.glob("pairs-*") for line in file.read_text().splitlines()]
    found = np.array([line.split() for line in lines], np.int64).reshape(-1, 3)
    return found[np.lexsort((found[:, 1], found[:, 0]))].T


def _line(pair: tuple[tuple[int, int], Iterable[bool]]) -> str:
    (left, right), alike = pair
    return f"{left} {right} {int(next(iter(alike)))}"


@functools.lru_cache(maxsize=1)
def _opened(folder: str, token: str) -> tuple[select.Corpus, np.ndarray, np.ndarray]:
    """Open in a worker what the launching process wrote; `token` tells one search from another."""
    places = [(Path(place), index) for place, index in files.read_json(Path(folder) / INPUTS)]
    rank = np.load(Path(folder) / "rank.npy", mmap_mode="r")
    alive = np.load(Path(folder) / "alive.npy", mmap_mode="r")
    return select.open_shards(places), rank, alive


Where = tuple[str, str]  # folder and token of `_opened`
Keyed = Iterator[tuple[int, int]]
Pairs = Iterator[tuple[tuple[int, int], bool]]


def _equal_keys(shard: int, where: Where, what: str) -> Keyed:
    corpus, _, alive = _opened(*where)
    mine = np.arange(corpus.starts[shard], corpus.starts[shard + 1])
    mine = mine[alive[mine]]
    yield from _keyed(corpus.keys(what, mine), mine)


def _band_keys(shard: int, where: Where) -> Keyed:
    corpus, _, alive = _opened(*where)
    mine = np.arange(corpus.starts[shard], corpus.starts[shard + 1])
    living = np.flatnonzero(alive[mine])
    stored = corpus.bands[shard]
    for keys in stored.rows(0, len(stored)) if stored else ():  # keys hold their band's number
        yield from _keyed(keys[living], mine[living])


def _keyed(keys: np.ndarray, documents: np.ndarray) -> Keyed:
    """Yield pairs; Beam codes signed numbers only."""
    yield from zip(keys.view(np.int64).tolist(), documents.tolist(), strict=True)


def _first_of(bucket: tuple[int, Iterable[int]], where: Where, _: float) -> Pairs:
    members = _ranked(bucket[1], where)
    for other in members[1:].tolist():
        yield (int(members[0]), other), True


def _compared(bucket: tuple[int, Iterable[int]], where: Where, threshold: float) -> Pairs:
    members = _ranked(bucket[1], where)
    if len(members) < 2:
        return
    corpus = _opened(*where)[0]

    def similar(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        return np.array([corpus.jaccard(a, b) >= threshold for a, b in pairs], bool)

    left, right, same = cluster.compare(members, np.zeros(len(members), np.int64), similar)
    for a, b, alike in zip(left.tolist(), right.tolist(), same.tolist(), strict=True):
        yield (a, b), alike


def _ranked(documents: Iterable[int], where: Where) -> np.ndarray:
    members = np.unique(np.fromiter(documents, np.int64))
    return members[np.argsort(_opened(*where)[1][members])]


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise ConfigError(
            "The engine beam needs Apache Beam, which is not installed here.",
            "Make an environment for it (docs/corpus.md), or set --config.engine.name=local.",
        ) from error
    return apache_beam


def _pipeline(options: Sequence[str]) -> Any:
    """Return a pipeline; without a runner among the options it runs on this machine."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    # Beam's own default runner may fetch a program from the network.
    runner = None if any(o.startswith("--runner") for o in options) else FnApiRunner()
    return _beam().Pipeline(runner=runner, options=PipelineOptions(list(options)))

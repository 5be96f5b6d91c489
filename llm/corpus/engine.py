# SPDX-License-Identifier: Apache-2.0
"""Run one function over shards, in processes or by Beam, restartable at any moment.

A task is a JSON-able dict with "index" and "fingerprint". Its function writes output files
atomically and returns a JSON-able result; the engine writes the result last, as the task's
manifest. A run that was killed finds the finished manifests, checks their files and goes on.
"""

import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from llm import errors, files
from llm.core.console import watched

Task = dict[str, Any]
Result = dict[str, Any]


def run(
    function: str,
    tasks: list[Task],
    folder: Path,
    *,
    engine: Mapping[str, Any],
    label: str,
    console: Console,
) -> list[Result]:
    """Run `function` ("module:name") on every task that is not finished; return all results.

    Args:
        function: takes a task, returns {"files": [{"file", "sha"}…], "documents", "bytes", …}.
        tasks: one per shard; "fingerprint" covers all that the result depends on.
        folder: where manifests and the files they name lie.
        engine: the config's section: name, workers (1 runs in this process), options.
        label: shown in the progress line.
        console: where progress goes.

    Raises:
        UserError: what a worker raised, or PeerError when a worker was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clean_temporary(folder)
    results: dict[int, Result] = {}
    todo = []
    for task in tasks:
        done = finished(folder, task)
        if done is None:
            todo.append(task)
        else:
            results[task["index"]] = done
    start, count, size = time.perf_counter(), 0, 0
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total} shards {task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    still = not watched(console or Console())
    with Progress(*columns, console=console, transient=True, disable=still) as progress:
        line = progress.add_task(label, total=len(tasks), completed=len(results), speed="")
        for index, result in _results(function, todo, folder, engine):
            results[index] = result
            count, size = count + result["documents"], size + result["bytes"]
            seconds = max(time.perf_counter() - start, 1e-9)
            speed = f"{count / seconds:,.0f} docs/s {size / seconds / 1e6:.1f} MB/s"
            progress.update(line, advance=1, speed=speed)
    return [results[task["index"]] for task in tasks]


def manifest_path(folder: Path, index: int) -> Path:
    """Return where a task's manifest lies."""
    return folder / f"{index:05d}.json"


def finished(folder: Path, task: Task) -> Result | None:
    """Return a task's stored result if it is for the same work and its files are whole."""
    path = manifest_path(folder, task["index"])
    if not path.exists():
        return None
    try:
        stored = files.read_json(path)
    except errors.DataError:
        return None
    if stored.get("fingerprint") != task["fingerprint"]:
        return None
    for output in stored["result"].get("files", []):
        file = folder / output["file"]
        if not file.exists() or files.hash_file(file) != output["sha"]:
            return None
    return stored["result"]


def clean_temporary(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for leftover in folder.glob(".tmp-*"):
        leftover.unlink(missing_ok=True)


def _results(
    function: str, todo: list[Task], folder: Path, engine: Mapping[str, Any]
) -> Iterator[tuple[int, Result]]:
    if engine["name"] == "beam":
        from llm.corpus import beam

        return beam.results(function, todo, folder, engine["options"]) if todo else iter(())
    return _pool(function, todo, folder, engine["workers"])


def _pool(
    function: str, todo: list[Task], folder: Path, workers: int
) -> Iterator[tuple[int, Result]]:
    if workers <= 1 or len(todo) <= 1:
        for task in todo:
            yield task["index"], unwrap(work(function, task, str(folder)))
        return
    context = multiprocessing.get_context("spawn")  # fork with threads can deadlock
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_watch_parent)
    try:
        waiting: dict[Future, int] = {}
        queue = iter(todo)
        while True:
            # Few tasks ahead of the workers, so that an error stops the run at once.
            for task in queue:
                waiting[pool.submit(work, function, task, str(folder))] = task["index"]
                if len(waiting) >= 2 * workers:
                    break
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), unwrap(future.result())
    except BrokenProcessPool as error:
        raise errors.PeerError(
            "A corpus worker process was killed, often for want of memory.",
            "Run the same command again (finished shards are kept), with fewer "
            "--config.engine.workers if memory is short.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def work(function: str, task: Task, folder: str) -> dict[str, Any]:
    """Run one task in a worker and store its manifest; user errors travel as data."""
    module, name = function.split(":")
    try:
        body: Callable[[Task, Path], Result] = getattr(importlib.import_module(module), name)
        result = body(task, Path(folder))
        files.write_json(
            manifest_path(Path(folder), task["index"]),
            {"fingerprint": task["fingerprint"], "result": result},
        )
    except errors.UserError as error:
        return {"error": [type(error).__name__, error.problem, error.fix]}
    return {"result": result}


def unwrap(answer: dict[str, Any]) -> Result:
    """Return what `work` answered, or raise the error that it met."""
    if "error" in answer:
        kind, problem, fix = answer["error"]
        raise getattr(errors, kind)(problem, fix)
    return answer["result"]


def _watch_parent() -> None:
    """End this worker when its parent dies, which a killed parent cannot ask for."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

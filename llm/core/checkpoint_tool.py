# SPDX-License-Identifier: Apache-2.0
"""Look at checkpoints from the command line: ls, verify, diff, export. JAX only for diff."""

import argparse
import os
import shutil
import sys
import time
from typing import Any

from llm import files
from llm.core import checkpoint_files as disk
from llm.errors import ConfigError, StorageError, UserError

_RUN_FILES = ("config.json", "tokenizer")  # what reading a model back needs beside its weights


def ls(directory: str | os.PathLike) -> list[str]:
    """Describe every step of a run in one line each; array files are not read."""
    base = disk.root(directory)
    listing = disk.survey(base)
    lines = []
    for step in sorted({*listing.steps, *listing.damaged}):
        manifest = disk.read_manifest(base / str(step))
        if manifest is None:
            lines.append(f"{step:>10}  damaged: its manifest cannot be read")
            continue
        size = sum(size for size, _ in manifest.files.values())
        metrics = "  ".join(f"{name}={value:.6g}" for name, value in manifest.metrics.items())
        lines.append(
            f"{step:>10}  {size / 1e6:10.2f} MB  {len(manifest.files):4d} files  "
            f"{', '.join(manifest.entries)}  {metrics}".rstrip()
        )
    lines += [f"{name:>10}  set aside" for name in listing.set_aside]
    lines += [f"{name:>10}  no checkpoint, ignored" for name in listing.foreign]
    return lines or [f"{base} has no checkpoint."]


def verify(directory: str | os.PathLike, step: int | None = None) -> tuple[list[str], bool]:
    """Check every byte of one step, or of all; returns report lines and whether all is well.

    Raises:
        StorageError: there is nothing to verify.
    """
    base = disk.root(directory)
    listing = disk.survey(base)
    steps = sorted({*listing.steps, *listing.damaged}) if step is None else [step]
    if not steps or not (base / str(steps[0])).is_dir():
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise StorageError(f"{base} has {what}.", f"It has steps {listing.steps}.")
    lines, well = [], True
    for number in steps:
        started = time.perf_counter()
        bad = disk.problems(base / str(number))
        seconds = time.perf_counter() - started
        manifest = disk.read_manifest(base / str(number))
        if bad or manifest is None:
            well = False
            lines += [f"step {number}: {problem}" for problem in bad]
        else:
            size = sum(size for size, _ in manifest.files.values()) / 1e6
            lines.append(f"step {number}: intact ({size:.1f} MB, {size / seconds:.0f} MB/s)")
    return lines, well


def diff(
    first: str | os.PathLike,
    second: str | os.PathLike,
    first_step: int | None = None,
    second_step: int | None = None,
) -> list[str]:
    """Compare two checkpoints leaf by leaf; no line means that they are bitwise equal."""
    import numpy as np

    from llm.core import checkpoint
    from llm.core.checkpoint_trees import comparable

    a = checkpoint.restore(first, step=first_step)
    b = checkpoint.restore(second, step=second_step)
    left, right = comparable(a.tree), comparable(b.tree)
    lines = []
    for name in sorted({*left, *right}):
        if name not in left or name not in right:
            lines.append(f"{name}: only in the {'first' if name in left else 'second'}")
            continue
        x, y = left[name], right[name]
        if x.shape != y.shape or x.dtype != y.dtype:
            lines.append(f"{name}: {x.dtype}{list(x.shape)} against {y.dtype}{list(y.shape)}")
        elif x.tobytes() != y.tobytes():
            gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
            lines.append(
                f"{name}: {np.count_nonzero(x != y)} of {x.size} values differ, "
                f"by at most {gap.max():.6g}"
            )
    if a.extra != b.extra:
        lines.append("extra.json: differs")
    return lines


def export(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    step: int | None = None,
    entries: tuple[str, ...] = ("params",),
) -> int:
    """Copy some entries of a verified step to a new run directory; returns the step.

    Args:
        source: a run or its `checkpoints/`; its config and tokenizer are copied when they exist.
        destination: a directory that does not hold checkpoints yet.
        step: None takes the newest step whose entries verify.
        entries: what to copy, by default the parameters without the optimizer state.

    Raises:
        StorageError: nothing verifies, or the destination is taken or cannot be written.
    """
    base = disk.root(source)
    candidates = [step] if step is not None else disk.survey(base).steps[::-1]
    chosen = next((s for s in candidates if not disk.problems(base / str(s), entries)), None)
    manifest = disk.read_manifest(base / str(chosen))
    if chosen is None or manifest is None:
        raise StorageError(
            f"No checkpoint in {base} verifies.", "See `checkpoint.py verify` for what is damaged."
        )
    if absent := [entry for entry in entries if entry not in manifest.entries]:
        raise ConfigError(
            f"Step {chosen} has no entry {absent[0]!r}.", f"It has {', '.join(manifest.entries)}."
        )
    target = files.path(destination)
    if (target / "checkpoints").exists():
        raise StorageError(f"{target} already holds checkpoints.", "Name a new directory.")
    checkpoints = disk.prepare(target / "checkpoints")
    written = checkpoints / (f".saving-{chosen}-1" if disk.is_local(target) else str(chosen))
    for entry in entries:
        _copy(base / str(chosen) / entry, written / entry)
    extra = files.read_json(base / str(chosen) / disk.EXTRA)
    leaves = {entry: manifest.entries[entry] for entry in entries}
    disk.seal(written, chosen, leaves, extra, manifest.metrics)
    for name in _RUN_FILES:
        if base.name == "checkpoints" and (base.parent / name).exists():
            _copy(base.parent / name, target / name)
    return chosen


def _copy(source: Any, destination: Any) -> None:
    """Copy a file or directory tree, local or remote."""
    if not source.exists():
        return  # an entry without arrays has no files
    if source.is_dir():
        destination.mkdir(parents=True, exist_ok=True)
        for item in source.iterdir():
            _copy(item, destination / item.name)
        return
    with source.open("rb") as reader, destination.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 22)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="checkpoint.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "ls": "list the steps of a run",
        "verify": "check every byte; exit 5 when anything is damaged",
        "diff": "compare two checkpoints; exit 1 when they differ",
        "export": "copy the parameters alone to a new directory",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", help="a run directory or its checkpoints/")
        if name in ("diff", "export"):
            command.add_argument("other", help="the second run" if name == "diff" else "where to")
        if name != "ls":
            command.add_argument("--step", type=int, help="default: the newest intact one")
        if name == "diff":
            command.add_argument("--other_step", type=int)
        if name == "export":
            command.add_argument("--entries", default="params", help="comma-separated")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "ls":
        print("\n".join(ls(options.directory)))
        return 0
    if options.command == "verify":
        lines, well = verify(options.directory, options.step)
        print("\n".join(lines))
        return 0 if well else StorageError.exit_code
    if options.command == "diff":
        lines = diff(options.directory, options.other, options.step, options.other_step)
        print("\n".join(lines) or "bitwise equal")
        return 1 if lines else 0
    entries = tuple(options.entries.split(","))
    step = export(options.directory, options.other, options.step, entries)
    print(f"step {step}: {', '.join(entries)} copied to {options.other}")
    return 0


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code

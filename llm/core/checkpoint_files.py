# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is on disk: step directories, manifests, checksums, safe deletion. No JAX.

A run's `checkpoints/` directory holds one directory per step, named by its number:

    <step>/manifest.json   sizes and checksums of all other files, and the tree's names and shapes
    <step>/extra.json      what the caller stored beside the arrays
    <step>/<entry>/…       one Orbax checkpoint per top-level entry ("params", "opt_state", …)

The manifest is written last and the directory appears under its number by one rename, so a step
is either whole or absent. Other names: `.saving-*` and `.deleting-*` (removed at the next start),
`<step>.corrupt` (failed verification), `<step>.superseded` (the run was rewound past it).
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from llm import files
from llm.errors import StorageError

MANIFEST = "manifest.json"
EXTRA = "extra.json"
FORMAT = 1
_CHUNK = 16 << 20  # bytes hashed by one task, so that one large file still uses every core
_TEMPORARY = re.compile(r"^\.(saving|deleting)-")
_SET_ASIDE = re.compile(r"^\d+\.(corrupt|superseded)(-\d+)?$")

log = logging.getLogger(__name__)


class Leaf(NamedTuple):
    """One array of the saved tree: its path below the entry, shape and dtype name."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class Manifest(NamedTuple):
    """The verified-by-itself description of one step."""

    step: int
    entries: dict[str, list[Leaf]]
    files: dict[str, tuple[int, str]]  # relative name -> (bytes, checksum)
    metrics: dict[str, float]


def root(directory: str | os.PathLike) -> Any:
    """Return the directory that holds the steps: the given one, or its `checkpoints/`."""
    base = files.path(directory)
    inner = base / "checkpoints"
    found = inner if base.name != "checkpoints" and inner.is_dir() else base
    return found.absolute() if is_local(found) else found  # Orbax wants absolute paths


def is_local(directory: Any) -> bool:
    """Tell whether a path is on a file system with atomic renames."""
    return isinstance(directory, Path)


def _body(manifest: Manifest) -> dict:
    return {
        "format": FORMAT,
        "step": manifest.step,
        "metrics": manifest.metrics,
        "entries": {
            entry: [["/".join(leaf.path), list(leaf.shape), leaf.dtype] for leaf in leaves]
            for entry, leaves in manifest.entries.items()
        },
        "files": {name: list(manifest.files[name]) for name in sorted(manifest.files)},
    }


def render_manifest(manifest: Manifest) -> str:
    """Serialise a manifest, closed by a checksum of its own content."""
    body = _body(manifest)
    return json.dumps({**body, "checksum": files.hash_json(body)}, indent=1) + "\n"


def parse_manifest(text: str) -> Manifest | None:
    """Read a manifest; None when any byte differs from what `render_manifest` writes."""
    try:
        raw = json.loads(text)
        manifest = Manifest(
            step=raw["step"],
            entries={
                entry: [
                    Leaf(tuple(path.split("/")) if path else (), tuple(shape), dtype)
                    for path, shape, dtype in leaves
                ]
                for entry, leaves in raw["entries"].items()
            },
            files={name: (size, checksum) for name, (size, checksum) in raw["files"].items()},
            metrics=raw["metrics"],
        )
        return manifest if render_manifest(manifest) == text else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_manifest(step_directory: Any) -> Manifest | None:
    """Return the manifest of a step directory, or None when it is missing or damaged."""
    try:
        manifest = parse_manifest((step_directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return manifest


def _threads(directory: Any) -> int:
    return min(32, (os.cpu_count() or 1) * (1 if is_local(directory) else 8))


def _hash_chunk(file: Any, offset: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(offset)
        return hashlib.blake2b(stream.read(_CHUNK), digest_size=16).digest()


def checksums(directory: Any, names: list[str]) -> dict[str, tuple[int, str] | None]:
    """Return (bytes, checksum) of each file, None for one that cannot be read.

    A checksum is BLAKE2b-128 over the BLAKE2b-128 digests of the file's 16 MiB chunks; chunks are
    hashed in parallel threads (hashing releases the interpreter lock).
    """
    with ThreadPoolExecutor(_threads(directory)) as pool:
        jobs: dict[str, tuple[int, list]] = {}
        found: dict[str, tuple[int, str] | None] = {}
        for name in names:
            file = directory / name
            try:
                size = file.stat().st_size if is_local(directory) else file.stat().length
            except OSError:
                found[name] = None
                continue
            starts = range(0, max(size, 1), _CHUNK)
            jobs[name] = size, [pool.submit(_hash_chunk, file, start) for start in starts]
        for name, (size, parts) in jobs.items():
            try:
                digest = files.hash_bytes(b"".join(part.result() for part in parts))
                found[name] = size, digest
            except OSError:
                found[name] = None
    return found


def content_names(step_directory: Any) -> list[str]:
    """List every file below a step directory except its manifest, as sorted relative names."""
    names = []
    pending = [(step_directory, "")]
    while pending:
        folder, prefix = pending.pop()
        for item in folder.iterdir():
            name = prefix + item.name.rstrip("/")
            if item.is_dir():
                pending.append((item, name + "/"))
            elif name != MANIFEST:
                names.append(name)
    return sorted(names)


def problems(
    step_directory: Any,
    entries: tuple[str, ...] | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[str]:
    """Verify a step against its manifest; an empty list means that every byte is as written.

    Args:
        step_directory: the directory of one step.
        entries: only files of these entries (and files outside all entries); None means all.
        share: (index, count) checks every count-th file, so that processes can share the work.
    """
    manifest = read_manifest(step_directory)
    if manifest is None:
        exists = (step_directory / MANIFEST).exists()
        return [f"{MANIFEST} is {'damaged' if exists else 'missing'}"]
    unread = set() if entries is None else set(manifest.entries) - set(entries)
    names = [name for name in manifest.files if name.split("/")[0] not in unread]
    names = names[share[0] :: share[1]]
    found = checksums(step_directory, names)
    bad = []
    for name in names:
        size, checksum = manifest.files[name]
        actual = found[name]
        if actual is None:
            bad.append(f"{name} is missing or unreadable")
        elif actual[0] != size:
            bad.append(f"{name} has {actual[0]} bytes instead of {size}")
        elif actual[1] != checksum:
            bad.append(f"{name} has other content than was written")
    return bad


def _sync(target: str | os.PathLike) -> None:
    """Force one file or directory to the disk."""
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(step_directory: Path) -> None:
    """Force a whole step to the disk; together, because the disk then shares the flushes."""
    targets = [step_directory, *step_directory.rglob("*")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_sync, targets))


def seal(
    written: Any,
    step: int,
    entries: dict[str, list[Leaf]],
    extra: dict,
    metrics: dict[str, float],
) -> Any:
    """Turn a fully written directory into a step: extra, checksums, manifest, then the name.

    Returns the step's directory. Raises OSError or StorageError when the disk fails.
    """
    files.write_json(written / EXTRA, extra)
    found = checksums(written, content_names(written))
    lost = [name for name, value in found.items() if value is None]
    if lost:
        raise StorageError(f"{lost[0]} of step {step} cannot be read back after writing.")
    content = {name: value for name, value in found.items() if value is not None}
    manifest = Manifest(step, entries, content, metrics)
    files.write_atomic(written / MANIFEST, render_manifest(manifest))
    if not is_local(written):
        return written
    _sync_tree(written)
    final = written.parent / str(step)
    if final.exists():
        set_aside(final, "superseded")
    os.rename(written, final)
    _sync(final.parent)
    return final


def set_aside(step_directory: Any, suffix: str) -> str:
    """Take a step out of the run without deleting it; returns the name it has now."""
    if not is_local(step_directory):
        # Object stores have no cheap directory rename; without its manifest a step does not exist.
        (step_directory / MANIFEST).rename(step_directory / f"{MANIFEST}.{suffix}")
        return step_directory.name
    target = step_directory.with_name(f"{step_directory.name}.{suffix}")
    number = 2
    while target.exists():
        target = step_directory.with_name(f"{step_directory.name}.{suffix}-{number}")
        number += 1
    os.rename(step_directory, target)
    _sync(target.parent)
    return target.name


def delete(step_directory: Any) -> None:
    """Delete a step so that an interruption at any moment leaves no half step behind."""
    if is_local(step_directory):
        temporary = step_directory.with_name(f".deleting-{step_directory.name}-{os.getpid()}")
        os.rename(step_directory, temporary)
        shutil.rmtree(temporary)
    else:
        (step_directory / MANIFEST).unlink(missing_ok=True)
        step_directory.rmtree()


def clean(directory: Any) -> list[str]:
    """Remove what interrupted saves and deletions left; returns the names removed.

    A complete save whose final rename was interrupted is kept, as its step. Only the process that
    owns the run may call this: another process's save in progress would be removed.
    """
    if not directory.is_dir():
        return []
    removed = []
    for item in sorted(directory.iterdir()):
        name = item.name.rstrip("/")
        if not _TEMPORARY.match(name) or not is_local(directory):
            continue
        manifest = read_manifest(item) if name.startswith(".saving-") else None
        final = directory / str(manifest.step) if manifest else None
        if final is not None and not final.exists() and not problems(item):
            os.rename(item, final)
            _sync(directory)
        else:
            remove_tree(item)
            removed.append(name)
    return removed


def remove_tree(folder: Any) -> None:
    """Remove a directory tree, also while a failed writer still adds its last files to it."""
    for _ in range(5):
        if is_local(folder):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            folder.rmtree()
        if not folder.exists():
            return
    log.warning("Cannot remove %s; it takes disk space until it is deleted by hand.", folder)


class Listing(NamedTuple):
    """What a checkpoints directory holds."""

    steps: list[int]  # with a readable manifest, ascending
    damaged: list[int]  # numeric directory with content but without a readable manifest
    set_aside: list[str]
    foreign: list[str]


def survey(directory: str | os.PathLike) -> Listing:
    """Sort the content of a checkpoints directory; reads manifests, no array files."""
    base = root(directory)
    listing = Listing([], [], [], [])
    if not base.is_dir():
        return listing
    for item in base.iterdir():
        name = item.name.rstrip("/")
        if _TEMPORARY.match(name):
            continue
        if _SET_ASIDE.match(name):
            listing.set_aside.append(name)
        elif not (name.isdecimal() and str(int(name)) == name and item.is_dir()):
            listing.foreign.append(name)
        elif _names_step(item, int(name)):
            listing.steps.append(int(name))
        elif any(item.iterdir()) and is_local(base):
            listing.damaged.append(int(name))
        else:
            listing.foreign.append(name)
    listing.steps.sort()
    listing.damaged.sort()
    listing.set_aside.sort()
    listing.foreign.sort()
    return listing


def _names_step(step_directory: Any, step: int) -> bool:
    manifest = read_manifest(step_directory)
    return manifest is not None and manifest.step == step


class Keep(NamedTuple):
    """Which steps stay; see `llm.core.checkpoint.Checkpointer`."""

    last: int = 3
    every: int = 0
    best: tuple[str, str] | None = None


def prepare(directory: str | os.PathLike) -> Any:
    """Make a checkpoints directory and prove that it can be written.

    Raises:
        StorageError: it cannot.
    """
    base = files.path(directory)
    probe = base / f".tmp-{uuid.uuid4().hex}"  # several processes prepare the same folder
    files.write_atomic(probe, b"")
    probe.unlink()
    return base


def prune(directory: Any, newest: int, keep: Keep) -> None:
    """Delete the steps that are no longer kept, after `newest` was verified on disk.

    `newest` always stays. Steps beyond it are from before the run was rewound: they are set aside,
    or a restart would continue from them.
    """
    steps = survey(directory).steps
    for step in [step for step in steps if step > newest]:
        name = set_aside(directory / str(step), "superseded")
        log.warning("The run went back to step %d; step %d is now %s.", newest, step, name)
    steps = [step for step in steps if step <= newest]
    kept = {newest, *steps[-keep.last :]}
    if keep.every:
        kept.update(step for step in steps if step % keep.every == 0)
    if keep.best is not None:
        best = best_step(directory, steps, *keep.best)
        kept.update(() if best is None else (best,))
    for step in steps:
        if step not in kept:
            delete(directory / str(step))


def best_step(directory: Any, steps: list[int], metric: str, mode: str) -> int | None:
    """Return the step whose saved metric is best (the newest of equals), or None."""
    values = {}
    for step in steps:
        manifest = read_manifest(directory / str(step))
        if manifest is not None and metric in manifest.metrics:
            values[step] = manifest.metrics[metric]
    sign = 1 if mode == "max" else -1
    return max(values, key=lambda step: (sign * values[step], step), default=None)

# SPDX-License-Identifier: Apache-2.0
"""Read checkpoints: verify, walk back to the newest intact step, place arrays on any mesh."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from llm.core import checkpoint_files as disk
from llm.core.checkpoint_files import Leaf
from llm.core.checkpoint_trees import BARE, describe, like, named_leaves, nest, typed
from llm.errors import ConfigError, StorageError

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint read back: the tree has the saved top-level entries (or those asked for)."""

    step: int
    tree: Any
    extra: dict


def agree(ok: bool) -> bool:
    """Return whether every process says yes (a collective in multi-process runs)."""
    if jax.process_count() == 1:
        return ok
    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def list_steps(directory: str | os.PathLike) -> list[int]:
    """List the steps with a readable manifest, ascending; array files are not read."""
    return disk.survey(directory).steps


def verify(directory: str | os.PathLike, step: int) -> list[str]:
    """Check every byte of a step; returns one line per problem, none when it is intact."""
    return disk.problems(disk.root(directory) / str(step))


def newest_verified(directory: str | os.PathLike) -> int | None:
    """Return the newest step whose every byte is as written, or None."""
    for step in reversed(list_steps(directory)):
        if not verify(directory, step):
            return step
    return None


def has_checkpoints(directory: str | os.PathLike) -> bool:
    """Tell whether anything here, intact, damaged or set aside, forbids starting from scratch."""
    listing = disk.survey(directory)
    return bool(listing.steps or listing.damaged or listing.set_aside)


def restore(
    directory: str | os.PathLike,
    target: Any = None,
    step: int | None = None,
    shardings: Any = None,
    entries: Iterable[str] | None = None,
    *,
    strict: bool = False,
    repair: bool = False,
) -> Restored:
    """Read the newest verified checkpoint.

    Args:
        directory: a `checkpoints/` directory, or a run directory that contains one.
        target: a dict of top-level entries with the wanted structure; leaves are arrays or
            `jax.ShapeDtypeStruct`. Only its entries are read. None gives nested dicts.
        step: this step and no other; None means the newest that verifies.
        shardings: one sharding for everything, or a tree of them (a prefix of the target is
            enough). Without it, leaves take the sharding of their target leaf, else are NumPy.
        entries: read only these top-level entries.
        strict: refuse a damaged newest step instead of walking back to an older one.
        repair: rename damaged steps to `<step>.corrupt`; only for the owner of the run.

    Raises:
        StorageError: there is no checkpoint, or none verifies.
        ConfigError: a leaf of the target has another name, shape or dtype than the saved one.
    """
    base = disk.root(directory)
    wanted = tuple(entries) if entries is not None else None
    if wanted is None and target is not None:
        wanted = tuple(target)
    chosen = _choose(base, step, wanted, strict, repair)
    step_directory = base / str(chosen)
    manifest = disk.read_manifest(step_directory)
    if manifest is None:
        raise StorageError(f"Checkpoint step {chosen} in {base} vanished while it was read.")
    wanted = tuple(manifest.entries) if wanted is None else wanted
    for entry in wanted:
        if entry not in manifest.entries:
            raise ConfigError(
                f"Checkpoint step {chosen} in {base} has no entry {entry!r}; it has "
                f"{', '.join(manifest.entries)}.",
                "Ask for an entry it has, or use the config that the run was started with.",
            )
    if target is not None:
        target = {entry: target[entry] for entry in wanted}
        _check(base, chosen, target, manifest.entries)
    places = _places(target, shardings)
    tree = {
        entry: _read(step_directory, entry, manifest.entries[entry], places) for entry in wanted
    }
    extra = json.loads((step_directory / disk.EXTRA).read_text(encoding="utf-8"))
    return Restored(chosen, tree if target is None else like(target, tree), extra)


def _choose(
    base: Any, step: int | None, wanted: tuple[str, ...] | None, strict: bool, repair: bool
) -> int:
    """Return the step to read: the one asked for, or the newest that verifies."""
    listing = disk.survey(base)
    if listing.foreign and step is None:
        log.warning("Ignoring in %s what is no checkpoint: %s", base, ", ".join(listing.foreign))
    candidates = sorted({*listing.steps, *listing.damaged}, reverse=True)
    if step is not None:
        candidates = [step] if step in candidates else []
    if not candidates:
        _refuse_absent(base, step, listing)
    bad = []
    for candidate in candidates:
        share = (jax.process_index(), jax.process_count())
        found = disk.problems(base / str(candidate), wanted, share)
        if agree(not found):
            break
        what = found[0] if found else "another process found it so"
        if strict or step is not None:
            raise StorageError(
                f"Checkpoint step {candidate} in {base} is damaged: {what}.",
                "Resume without checkpoint.strict, or name another step, to use an older one.",
            )
        log.warning("Checkpoint step %d is damaged (%s); trying an older one.", candidate, what)
        bad.append(candidate)
    else:
        raise StorageError(
            f"None of the checkpoints in {base} verifies (steps {bad[::-1]}); "
            "the run is not restarted from step 0.",
            "Restore the directory from a backup, or choose a new --workdir to start afresh.",
        )
    if repair and jax.process_index() == 0:
        for damaged in bad:
            name = disk.set_aside(base / str(damaged), "corrupt")
            log.warning("Set the damaged checkpoint aside as %s/%s", base, name)
    return candidate


def _refuse_absent(base: Any, step: int | None, listing: disk.Listing) -> None:
    if step is not None:
        raise StorageError(
            f"{base} has no checkpoint of step {step}.", f"It has steps {listing.steps}."
        )
    if listing.set_aside:
        raise StorageError(
            f"{base} has only checkpoints that were set aside: {', '.join(listing.set_aside)}.",
            "Restore one from a backup, or choose a new --workdir to start afresh.",
        )
    raise StorageError(f"{base} has no checkpoint.", "Check the path, or train first.")


def _check(base: Any, step: int, target: Any, saved: dict[str, list[Leaf]]) -> None:
    """Compare names, shapes and dtypes of a target with the saved ones."""
    fix = "Use the config that the run was started with (config.json), or another --workdir."
    for entry, subtree in target.items():
        have = {leaf.path: leaf for leaf in saved[entry]}
        want = {path: describe(path, leaf) for path, leaf in named_leaves(subtree)[0]}
        for path in [*want, *have]:
            name = "/".join((entry, *path))
            if path not in have:
                raise ConfigError(f"{name} is not in checkpoint step {step} of {base}.", fix)
            if path not in want:
                raise ConfigError(
                    f"Checkpoint step {step} of {base} has {name}, which is not expected.", fix
                )
            if have[path] != want[path]:
                saved_as, expected = (f"{x.dtype}{list(x.shape)}" for x in (have[path], want[path]))
                raise ConfigError(
                    f"{name} is {saved_as} in checkpoint step {step} of {base}, "
                    f"but {expected} is expected.",
                    fix,
                )


def _places(target: Any, shardings: Any) -> dict[tuple[str, ...], Any]:
    """Map leaf names, or prefixes of them, to shardings."""
    if shardings is not None:
        source, is_leaf = shardings, lambda node: isinstance(node, jax.sharding.Sharding)
        pairs = jax.tree_util.tree_flatten_with_path(source, is_leaf=is_leaf)[0]
        return {
            tuple(jax.tree_util.keystr((key,), simple=True) for key in path): sharding
            for path, sharding in pairs
        }
    named = named_leaves(target)[0] if target is not None else []
    found = {path: getattr(leaf, "sharding", None) for path, leaf in named}
    return {path: sharding for path, sharding in found.items() if sharding is not None}


def _place(places: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    """Return the sharding given for the longest prefix of a name, or None."""
    for length in range(len(path), -1, -1):
        if path[:length] in places:
            return places[path[:length]]
    return None


def _read(step_directory: Any, entry: str, leaves: list[Leaf], places: Mapping) -> Any:
    """Read one entry as nested dicts of arrays on their shardings (NumPy where none is given)."""
    found: dict[tuple[str, ...], Any] = {}
    wanted, arguments = [], []
    for leaf in leaves:
        path, sharding = leaf.path or (BARE,), _place(places, (entry, *leaf.path))
        if 0 in leaf.shape:  # Orbax refuses to write arrays without elements
            empty = np.zeros(leaf.shape, jnp.dtype(leaf.dtype))
            found[path] = empty if sharding is None else jax.device_put(empty, sharding)
            continue
        wanted.append((path, 0))
        if sharding is None:
            arguments.append((path, ocp.RestoreArgs(restore_type=np.ndarray)))
        else:
            arguments.append((path, ocp.ArrayRestoreArgs(sharding=sharding)))
    if wanted:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = reader.restore(
                step_directory / entry,
                args=ocp.args.PyTreeRestore(item=nest(wanted), restore_args=nest(arguments)),
            )
        found.update(named_leaves(read)[0])
    return nest((leaf.path, typed(found[leaf.path or (BARE,)], leaf.dtype)) for leaf in leaves)

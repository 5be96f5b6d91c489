# SPDX-License-Identifier: Apache-2.0
"""Trees of arrays as named leaves, the form in which checkpoints store and compare them."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.core.checkpoint_files import Leaf

BARE = "value"  # an entry that is one array is stored as a dict with this key


def named_leaves(tree: Any) -> tuple[list[tuple[tuple[str, ...], Any]], Any]:
    """Flatten a tree into ((name, …), leaf) pairs and its structure."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = []
    for path, leaf in pairs:
        parts = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        if any(not part or "/" in part for part in parts):
            raise ValueError(f"tree key {parts} is empty or contains '/', which separates names")
        named.append((parts, leaf))
    if len({parts for parts, _ in named}) != len(named):
        raise ValueError("two leaves of the tree have the same name")
    return named, structure


def nest(pairs: Iterable[tuple[tuple[str, ...], Any]]) -> Any:
    """Build nested dicts from (path, value) pairs; one empty path is the value itself."""
    nested: dict = {}
    for path, value in pairs:
        if not path:
            return value
        node = nested
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return nested


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_kind(leaf: Any) -> str:
    found: list[str] = []  # traced, because a shape has no implementation of its own to ask for
    jax.eval_shape(lambda key: found.append(str(jax.random.key_impl(key))), leaf)
    return found[0]


def describe(path: tuple[str, ...], leaf: Any) -> Leaf:
    """Return name, shape and dtype of a leaf: an array, shape, PRNG key or Python number."""
    if _is_key(leaf):
        return Leaf(path, tuple(leaf.shape), f"key<{_key_kind(leaf)}>")
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return Leaf(path, tuple(array.shape), np.dtype(array.dtype).name)


def snapshot(leaf: Any) -> Any:
    """Return what is written: nothing the caller does to the leaf afterwards changes it.

    In a single process that is a copy in host memory. In a multi-process run JAX arrays stay as
    they are: Orbax copies each process's shards to its host before its `save` returns.
    """
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, jax.Array):
        return np.array(leaf)
    if jax.process_count() > 1:
        return leaf
    host = np.asarray(leaf)  # on a CPU this can be a view of the device buffer
    return host if host.flags.owndata else host.copy()


def start_copies(leaves: Iterable[Any]) -> None:
    """Begin the transfers from the devices to the host, so that they overlap."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and not _is_key(leaf) and jax.process_count() == 1:
            leaf.copy_to_host_async()


def typed(array: Any, dtype: str) -> Any:
    """Undo `snapshot` for an array that was saved with this dtype."""
    if dtype.startswith("key<"):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=dtype[4:-1])
    return array


def like(target: Any, tree: Any) -> Any:
    """Give nested dicts the structure of the target, Python numbers included."""
    named, structure = named_leaves(target)
    found = dict(named_leaves(tree)[0])
    leaves = []
    for path, leaf in named:
        value = found[path]
        leaves.append(type(leaf)(value.item()) if isinstance(leaf, int | float) else value)
    return jax.tree_util.tree_unflatten(structure, leaves)


def comparable(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves as NumPy arrays by name; PRNG keys as their data."""
    return {
        "/".join(path): np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for path, leaf in named_leaves(tree)[0]
    }

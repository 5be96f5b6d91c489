# SPDX-License-Identifier: Apache-2.0
"""Named leaves of nested trees: flatten, split by regular expression, merge, count."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llm import files


def path_name(path: Any) -> str:
    """Return a key path as "a/b/0"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return {"a/b": leaf} in the tree's own order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in leaves}


def unflatten(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict of {"a/b": leaf}."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def split(tree: Mapping[str, Any], pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a nested dict into the leaves whose name matches (anywhere) and the others."""
    named = flatten(tree)
    matcher = re.compile(pattern)
    inside = {k: v for k, v in named.items() if matcher.search(k)}
    outside = {k: v for k, v in named.items() if k not in inside}
    return unflatten(inside), unflatten(outside)


def merge(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """Join nested dicts with disjoint leaves."""
    named: dict[str, Any] = {}
    for tree in trees:
        named.update(flatten(tree))
    return unflatten(named)


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map `function(name, leaf)` over a tree."""
    return jax.tree_util.tree_map_with_path(lambda p, x: function(path_name(p), x), tree)


def fingerprint(tree: Any) -> str:
    """Return a hash of all leaves' names and bytes."""
    named = flatten(jax.device_get(tree))
    return files.hash_json(
        [[name, files.hash_bytes(np.ascontiguousarray(x).tobytes())] for name, x in named.items()]
    )


def count(tree: Any) -> int:
    """Return the number of elements in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_bytes(tree: Any) -> int:
    """Return the bytes of all leaves."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

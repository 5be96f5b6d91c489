# SPDX-License-Identifier: Apache-2.0
"""Arrays as JSON, bit for bit: for what a source must keep in a checkpoint."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm.errors import StorageError


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return arrays as {"dtype", "shape", "data"}: compressed, in base 64."""
    return {
        name: {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "data": base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode(),
        }
        for name, array in arrays.items()
    }


def unpack(stored: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return what `pack` was given.

    Raises:
        StorageError: the size does not fit the shape.
    """
    arrays = {}
    for name, item in stored.items():
        dtype, shape = np.dtype(item["dtype"]), tuple(map(int, item["shape"]))
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        data = zlib.decompressobj().decompress(base64.b64decode(item["data"]), size + 1)
        if len(data) != size:
            raise StorageError(
                f"The rollout's {name} in the checkpoint has not the size of its shape.",
                "Resume from an older step.",
            )
        arrays[name] = np.frombuffer(data, dtype).reshape(shape).copy()
    return arrays

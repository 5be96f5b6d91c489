# SPDX-License-Identifier: Apache-2.0
"""Make gguf_blocks.npz with the gguf package: blocks of every format, what they decode to, and
what weights are encoded to.

python tests/goldens/gguf_blocks.py      (gguf 0.19; not needed by the tests)
"""

from pathlib import Path

import gguf
import numpy as np

# format -> (bytes of a block, bytes where a float16 begins)
FORMATS = {
    "Q4_0": (18, (0,)),
    "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)),
    "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
}
ENCODED = ("Q4_0", "Q4_1", "Q8_0", "BF16")


def weights():
    """Return [8, 64] weights, with a row of zeros, a constant block, and ties in size."""
    w = np.random.default_rng(1).normal(0, 1, (8, 64)).astype(np.float32)
    w[3] = 0
    w[5, :32] = 7
    w[6, :2] = (9, -9)
    return w


def main():
    rng = np.random.default_rng(0)
    arrays = {"weights": weights()}
    for name, (size, halves) in FORMATS.items():
        blocks = rng.integers(0, 256, (6, size)).astype(np.uint8)
        for at in halves:
            blocks[:, at : at + 2] = rng.normal(0, 1, 6).astype("<f2").view(np.uint8).reshape(6, 2)
        kind = getattr(gguf.GGMLQuantizationType, name)
        arrays[f"{name}_blocks"] = blocks
        arrays[f"{name}_decoded"] = gguf.quants.dequantize(blocks, kind).astype(np.float32)
    for name in ENCODED:
        kind = getattr(gguf.GGMLQuantizationType, name)
        encoded = gguf.quants.quantize(weights(), kind)
        arrays[f"{name}_encoded"] = np.ascontiguousarray(encoded).view(np.uint8)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()

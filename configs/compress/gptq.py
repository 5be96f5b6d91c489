# SPDX-License-Identifier: Apache-2.0
"""Store a model's weights in 4 bits, chosen so that its matrices say what they said before.

    python scripts/compress.py --config=configs/compress/gptq.py --workdir=runs/int4 \\
        --config.model=runs/dpo --config.measure.documents=runs/corpus \\
        --config.calibration.documents=runs/corpus

Hardware: any CPU with two cores, about a minute on the tiny model; docs/compress.md has figures of
SmolLM2. A matrix of n inputs needs n² numbers in float32 while it is calibrated.
"""

from ml_collections import ConfigDict

from configs.compress import tiny
from llm.compress.names import KEPT, QUANTIZED


def get_config():
    config = tiny.get_config()
    chosen = {"group": 32, "include": QUANTIZED, "exclude": KEPT}
    config.variants = ConfigDict(
        {
            "float32": {"method": "float32"},
            "int4": {"method": "int4", **chosen},
            "gptq": {"method": "gptq", "bits": 4, "damping": 0.01, **chosen},
        }
    )
    config.keep = "gptq"
    # Texts that the method learns from: none of those that are measured
    config.calibration = ConfigDict(
        {"documents": "runs/corpus", "split": "train", "limit": 400, "length": 128}
    )
    return config

# SPDX-License-Identifier: Apache-2.0
"""Store a model's weights as 8-bit integers and show what that costs beside other sizes.

    python scripts/compress.py --config=configs/compress/tiny.py --workdir=runs/int8 \\
        --config.model=runs/dpo --config.measure.documents=runs/corpus

Hardware: any CPU with two cores, about half a minute on the tiny model. Expect int8 at a quarter
of the bytes, within 0.001 bits per byte and 98 % of the likeliest tokens unchanged.
"""

from ml_collections import ConfigDict

from llm.compress.names import KEPT, QUANTIZED


def get_config():
    config = ConfigDict()
    config.model = "runs/dpo"  # what llm.load takes
    quantized = {"group": 0, "include": QUANTIZED, "exclude": KEPT}
    config.variants = ConfigDict(
        {
            "float32": {"method": "float32"},
            "bfloat16": {"method": "bfloat16"},
            "int8": {"method": "int8", **quantized},
            "int4": {"method": "int4", **quantized, "group": 32},
        }
    )
    config.keep = "int8"  # the variant that is written to the workdir
    config.measure = ConfigDict(
        {"documents": "runs/corpus", "split": "validation", "limit": 100, "length": 128}
    )
    return config

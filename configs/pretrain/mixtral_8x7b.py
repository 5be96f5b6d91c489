# SPDX-License-Identifier: Apache-2.0
"""Pre-train a mixture of experts in Mixtral-8x7B's shape.

    python scripts/pretrain.py --config=configs/pretrain/mixtral_8x7b.py --workdir=gs://bucket/m \\
        --config.data.path=gs://bucket/corpus --config.tokenizer.path=gs://bucket/tokenizer

Hardware: from 64 TPU v5p chips; check other sizes first:
    python scripts/plan.py --config=configs/pretrain/mixtral_8x7b.py --topology=v5p:4x4x4 --compile
Cost: about 7.7e22 FLOPs per trillion tokens (12.9 of 46.7 billion parameters work per token).
"""

from configs import common
from configs.pretrain import llama2_7b


def get_config():
    config = llama2_7b.get_config()
    config.model = common.model("mixtral_8x7b", dtype="bfloat16", remat="full")
    return config

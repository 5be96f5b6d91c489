# SPDX-License-Identifier: Apache-2.0
"""Pre-train Llama-2-70B in shape.

    python scripts/pretrain.py --config=configs/pretrain/llama2_70b.py --workdir=gs://bucket/run \\
        --config.data.path=gs://bucket/corpus --config.tokenizer.path=gs://bucket/tokenizer

Hardware: from 128 TPU v5p chips; check other sizes first:
    python scripts/plan.py --config=configs/pretrain/llama2_70b.py --topology=v5p:4x4x8 --compile
Cost: about 4.2e23 FLOPs per trillion tokens.
"""

from configs import common
from configs.pretrain import llama2_7b


def get_config():
    config = llama2_7b.get_config()
    config.model = common.model("llama2_70b", dtype="bfloat16", remat="full")
    config.train.microbatches = 4
    config.schedule.peak = 1.5e-4
    return config

# SPDX-License-Identifier: Apache-2.0
"""Pre-train Llama-3.2-1B in shape.

    python scripts/pretrain.py --config=configs/pretrain/llama32_1b.py --workdir=gs://bucket/run \\
        --config.data.path=gs://bucket/corpus --config.tokenizer.path=gs://bucket/tokenizer

Hardware: from 16 TPU v5e chips; check other sizes first:
    python scripts/plan.py --config=configs/pretrain/llama32_1b.py --topology=v5e:4x4 --compile
Cost: about 8e21 FLOPs per trillion tokens. Nobody has trained it here: no loss is known.
"""

from configs import common
from configs.pretrain import llama2_7b


def get_config():
    config = llama2_7b.get_config()
    config.model = common.model("llama32_1b", dtype="bfloat16", remat="full")
    config.train.microbatches = 8
    return config

# SPDX-License-Identifier: Apache-2.0
"""Pre-train Llama-3.1-8B in shape, with 8,192 tokens of context.

    python scripts/pretrain.py --config=configs/pretrain/llama31_8b.py --workdir=gs://bucket/run \\
        --config.data.path=gs://bucket/corpus --config.tokenizer.path=gs://bucket/tokenizer

Hardware: from 16 TPU v6e chips; check other sizes first:
    python scripts/plan.py --config=configs/pretrain/llama31_8b.py --topology=v6e:4x4 --compile
Cost: about 5e22 FLOPs per trillion tokens.
"""

from configs import common
from configs.pretrain import llama2_7b


def get_config():
    config = llama2_7b.get_config()
    config.model = common.model("llama31_8b", dtype="bfloat16", remat="full")
    config.data.length = 8192
    config.train.batch_size = 512
    config.train.microbatches = 32
    return config

# SPDX-License-Identifier: Apache-2.0
"""Label preference pairs by a judge model in both orders, and measure it against known labels.

    python scripts/feedback.py --config=configs/feedback/judge.py --config.path=pairs.jsonl \\
        --config.model=SmolLM2-135M-Instruct.Q4_1.gguf --workdir=runs/judge

Reads {"prompt", "chosen", "rejected"} or "Human: … Assistant: …" dialogues; writes
preferences.jsonl as the judge has them, and results.json: agreement with its interval, the same for
one order alone, and the judge's lean to the first place in log-odds.

Hardware: any; a pair costs four readings of both answers. Read agreement and lean before you train
on what a judge says: SmolLM2-135M named the first answer in all of 100 HH pairs, and without that
lean was right in 51.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/sft"  # the judge
    config.dtype = "float32"
    config.platform = ""
    config.path = "pairs.jsonl"
    config.limit = 200
    config.seed = 0
    config.chunk = 8  # pairs between two saves
    config.sampling = ConfigDict()
    config.maker = ConfigDict(
        {
            "name": "judge",
            "criterion": "more helpful, honest and harmless",
            "chat": True,
            "margin": 0.0,
        }
    )
    return config

# SPDX-License-Identifier: Apache-2.0
"""Let a model criticise and revise its answers by principles: chats and preference pairs.

    python scripts/feedback.py --config=configs/feedback/revise.py --config.model=runs/sft \\
        --config.path=prompts.jsonl --workdir=runs/revise

Hardware: any; the cost is that of three answers a prompt. Expect nearly every answer to change;
what a small model calls a revision is often no better, so read some before you train on them.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/sft"
    config.dtype = "float32"
    config.platform = ""
    config.path = "prompts.jsonl"
    config.limit = 0
    config.seed = 0
    config.chunk = 16
    config.sampling = ConfigDict({"max_tokens": 128, "temperature": 0.7, "top_p": 0.95})
    config.maker = ConfigDict(
        {
            "name": "revise",
            "rounds": 1,
            "principles": (
                "Do not help anybody to hurt, deceive or spy on somebody.",
                "Say what is true, and say so where you are not sure.",
                "Be polite, and do not judge the person who asks.",
                "Answer what was asked, plainly and without needless words.",
            ),
        }
    )
    return config

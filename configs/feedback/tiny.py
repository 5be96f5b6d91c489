# SPDX-License-Identifier: Apache-2.0
"""Draw answers, let a judge score them, and keep pairs, the best ones, and what people may label.

    python scripts/feedback.py --config=configs/feedback/tiny.py --config.model=runs/sft \\
        --config.path=prompts.jsonl --workdir=runs/feedback

Reads prompts (chats, tasks, pairs, or the formats of post-training); writes answers.jsonl for
scripts/label.py, preferences.jsonl for DPO and reward models, chats.jsonl for SFT (rejection
sampling). The judge is the model itself; a reward model instead:
--config.maker.scorer.name=reward_model --config.maker.scorer.model=runs/reward. Start again after a
kill: what is done is kept.

Hardware: any; the cost is that of n answers and, with a judge, 2 n (n - 1) readings a prompt.
Expect results.json with score_best above score_mean.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/sft"  # writes the answers
    config.dtype = "float32"
    config.platform = ""
    config.path = "prompts.jsonl"
    config.limit = 0
    config.seed = 0
    config.chunk = 16  # prompts between two saves
    config.sampling = ConfigDict({"max_tokens": 96, "temperature": 0.9, "top_p": 0.95})
    config.maker = ConfigDict(
        {"name": "best_of", "n": 4, "margin": 0.0, "scorer": {"name": "judge", "model": ""}}
    )
    return config

# SPDX-License-Identifier: Apache-2.0
"""Say which answer is better, on a page of this machine, by keyboard.

    python scripts/label.py --config=configs/label/tiny.py --config.path=answers.jsonl \\
        --workdir=runs/labels

Reads {"prompt", "answers": ["…", "…"]} (two to four; an answer may be {"text", "model"}) or
preference pairs, and writes runs/labels/preferences.jsonl, which post-training reads. Stop and
start again at any time; docs/feedback.md lists the keys.

Hardware: any with a browser. Expect summary.json with the median time and the agreement.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.path = ""  # JSONL of answers; "" goes on with those already in the workdir
    config.seed = 0  # of the order in which answers are shown
    config.per_task = 0  # annotators each task needs; 0: everybody sees every task
    config.host = "127.0.0.1"  # this machine only
    config.port = 8010  # 0 takes a free one
    return config

# SPDX-License-Identifier: Apache-2.0
"""Make chats that decline harmful requests, and with a model answers to their harmless twins.

    python scripts/feedback.py --config=configs/feedback/refusals.py --workdir=runs/refusals
    python scripts/feedback.py --config=configs/feedback/refusals.py --workdir=runs/refusals \\
        --config.model=runs/sft

Hardware: any; a second without a model (expect 48 chats), 96 answers of the model with one. The
evaluation configs/eval/refusals.py asks other topics.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = ""  # answers the harmless twins; "" makes refusals only
    config.dtype = "float32"
    config.platform = ""
    config.path = ""
    config.limit = 0
    config.seed = 0
    config.chunk = 16
    config.sampling = ConfigDict({"max_tokens": 96, "temperature": 0.7, "top_p": 0.95})
    config.maker = ConfigDict({"name": "refusals"})
    return config

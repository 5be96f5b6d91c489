# SPDX-License-Identifier: Apache-2.0
"""Note in every document how well a language model predicts it, to filter the corpus by.

    python scripts/eval.py --config=configs/eval/annotate.py --workdir=runs/annotate \\
        --config.model=path/to/model --config.tasks.annotate.documents=path/to/corpus
    python scripts/corpus.py --config=configs/corpus/jsonl.py --workdir=runs/chosen \\
        --config.source.path=runs/annotated \\
        --config.filters.names='("noted",)' --config.filters.noted.most=1.2

The first command prints the deciles to choose a bound by. It may be stopped: shards that are
written are kept.

Hardware: any; a model of 135M parameters scores about 1,000 tokens a second on two CPU cores.
Expect 0.7 to 1.1 bits per byte of English from a good small model.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/pretrain"
    config.dtype = "float32"
    config.tasks = ConfigDict(
        {
            "annotate": {
                "kind": "annotate",
                "documents": "runs/corpus",
                "target": "runs/annotated",
                "split": "",
                "field": "lm_bits_per_byte",
                "max_bytes": 4_000,
                "batch_size": 32,
            }
        }
    )
    config.report = ConfigDict({"console": True, "max_items": 0})
    return config

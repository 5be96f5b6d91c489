# SPDX-License-Identifier: Apache-2.0
"""Measure how well any model predicts your own documents, and questions you have in a file.

    python scripts/eval.py --config=configs/eval/documents.py --workdir=runs/eval_mine \\
        --config.model=path/to/model --config.tasks.documents.documents=path/to/files.jsonl

Documents: JSONL(.gz/.zst), Parquet or text, a file, folder or glob. Add tasks of the kinds
perplexity, multiple_choice (JSONL of query/choices/gold), exact_match (prompt/answer), samples,
which_function and kneser_ney; see llm/eval/stage.py.

Hardware: any; a model of 135M parameters scores about 1,000 tokens a second on two CPU cores.
Expect 0.7 to 1.1 bits per byte of English from a good small model; a byte-level guess is 8.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.model = "runs/pretrain"
    config.dtype = "float32"
    config.tasks = ConfigDict(
        {
            "documents": {
                "kind": "perplexity",
                "documents": "documents.jsonl",
                "split": "",
                "limit": 0,
                "batch_size": 32,
            }
        }
    )
    config.report = ConfigDict({"console": True, "max_items": 200})
    return config

# SPDX-License-Identifier: Apache-2.0
"""Train a SentencePiece byte-pair tokenizer with byte fallback.

    python scripts/tokenizer.py --config=configs/tokenizer/bpe.py \\
        --config.data.path=DOCUMENTS --workdir=runs/tokenizer

Hardware: CPU; about one minute for 50 MB of text on two cores. Expect 4 to 4.5 bytes per token on
English prose and a round trip of 100 %.
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.seed = 0
    config.tokenizer = ConfigDict(
        {
            "name": "bpe",
            "vocab_size": 32_000,
            "split_digits": True,
            "character_coverage": 0.9995,
            "max_piece_length": 16,
        }
    )
    # path: a file, glob or folder of documents; "" takes Python's own help topics
    config.data = ConfigDict(
        {
            "path": "",
            "split": "train",
            "sample_bytes": 50_000_000,
            "measure_bytes": 5_000_000,
        }
    )
    return config

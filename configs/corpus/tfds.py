# SPDX-License-Identifier: Apache-2.0
"""A prepared TensorFlow dataset, cleaned by the web rules.

Command:  python scripts/corpus.py --config=configs/corpus/tfds.py \
              --config.source.dataset=wikipedia/20230601.en --workdir=runs/wikipedia
Hardware: any machine; each worker needs one core and memory for one shard's text.
Cost:     about 2 MB of text per second and core; TensorFlow loads once per worker.
Expect:   source.shards ranges of the split's examples; needs the extra "data" and a dataset that
          was prepared before (tfds build), in source.data_dir or the library's default folder.
"""

from ml_collections import ConfigDict

from configs.corpus import jsonl


def get_config() -> ConfigDict:
    """Return the settings."""
    config = jsonl.get_config()
    config.source = ConfigDict(
        {
            "name": "tfds",
            "dataset": "",
            "split": "train",
            "data_dir": "",
            "text_field": "text",
            "max_documents": 0,
            "max_error_rate": 0.05,
            "shards": 16,
        }
    )
    return config

# SPDX-License-Identifier: Apache-2.0
"""Python's own documentation: the corpus of scripts/quickstart.sh.

Command:  python scripts/corpus.py --config=configs/corpus/quickstart.py --workdir=runs/corpus
Hardware: any machine; 2 CPU cores.
Cost:     about 10 seconds.
Expect:   about 7,000 documents and 2.4 MB, 5 % of them for validation; planted copies and addresses
          found with recall and precision near 1.
"""

from ml_collections import ConfigDict

from configs.corpus import pydocs


def get_config() -> ConfigDict:
    """Return the settings."""
    config = pydocs.get_config()
    config.source.packages = ("python",)
    config.source.kinds = ("docstring", "topic", "licence", "metadata")
    config.source.shards = 4
    config.split.validation = 0.05
    config.inject.rate = 0.05  # a small corpus: more truth
    return config

# SPDX-License-Identifier: Apache-2.0
"""A few hundred kilobytes of documentation, for tests and first tries.

Command:  python scripts/corpus.py --config=configs/corpus/tiny.py --workdir=runs/corpus_tiny
Hardware: any machine; 1 CPU core.
Cost:     about 3 seconds.
Expect:   about 600 documents read from two small packages, most of them kept.
"""

from ml_collections import ConfigDict

from configs.corpus import pydocs


def get_config() -> ConfigDict:
    """Return the settings."""
    config = pydocs.get_config()
    config.source.packages = ("absl", "optax")
    config.source.kinds = ("docstring", "licence", "metadata")
    config.source.shards = 2
    config.split.validation = 0.05
    config.engine.workers = 1
    config.inject.rate = 0.1
    return config

# SPDX-License-Identifier: Apache-2.0
"""Your own documents: JSONL (.gz, .zst), Parquet or text files, cleaned by the web rules.

Command:  python scripts/corpus.py --config=configs/corpus/jsonl.py \
              --config.source.path='data/*.jsonl.gz' --workdir=runs/my_corpus
Hardware: any machine; each worker needs one core and memory for one input file's text.
Cost:     about 2 MB of text per second and core, from reading to written shards.
Expect:   a record is {"text": …} with optional id, source, url, licence, meta. The rules are
          Gopher, C4 without its end-mark rule, and FineWeb, as published; --config.filters.names
          chooses among them.
"""

from ml_collections import ConfigDict

from configs.corpus import pydocs
from llm.corpus import filters


def get_config() -> ConfigDict:
    """Return the settings."""
    config = pydocs.get_config()
    config.source = ConfigDict(
        {
            "name": "files",
            "path": "",
            "split": "",
            "max_documents": 0,
            "max_error_rate": 0.05,
            "text_field": "text",
            "id_field": "id",
        }
    )
    config.filters = ConfigDict(filters.section(filters.WEB))
    config.split.validation = 0.01
    config.inject.kinds = ()
    config.inject.rate = 0.0
    return config

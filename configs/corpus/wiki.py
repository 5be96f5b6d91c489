# SPDX-License-Identifier: Apache-2.0
"""MediaWiki XML dumps: running text of articles, without templates, tables and reference lists.

Command:  python scripts/corpus.py --config=configs/corpus/wiki.py \
              --config.source.path='dumps/*pages-articles*.xml*.bz2' --workdir=runs/wiki
Hardware: any machine; each worker needs one core and memory for one dump file's text.
Cost:     about 2 MB of text per second and core, after decompression.
Expect:   one shard per file: take the dump in parts, not the single file. Broken pages are
          skipped, counted and listed in rejected.jsonl.
"""

from ml_collections import ConfigDict

from configs.corpus import jsonl


def get_config() -> ConfigDict:
    """Return the settings."""
    config = jsonl.get_config()
    config.source = ConfigDict(
        {
            "name": "wiki",
            "path": "",
            "namespaces": (0,),
            "redirects": False,
            "max_documents": 0,
            "max_error_rate": 0.05,
        }
    )
    # An encyclopedia's lists and headings are part of it.
    config.filters.names = ("gopher_repetition", "gopher_quality")
    return config

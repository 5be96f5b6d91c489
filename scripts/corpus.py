# SPDX-License-Identifier: Apache-2.0
"""The corpus stage: python scripts/corpus.py --config=configs/corpus/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("corpus")

# SPDX-License-Identifier: Apache-2.0
"""The compress stage: python scripts/compress.py --config=configs/compress/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("compress")

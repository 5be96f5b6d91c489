# SPDX-License-Identifier: Apache-2.0
"""The pretrain stage: python scripts/pretrain.py --config=configs/pretrain/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("pretrain")

# SPDX-License-Identifier: Apache-2.0
"""Run: python scripts/posttrain.py --config=configs/posttrain/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("posttrain")

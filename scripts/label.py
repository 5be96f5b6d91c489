# SPDX-License-Identifier: Apache-2.0
"""Label answers: python scripts/label.py --config=configs/label/tiny.py --config.path=FILE"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("label")

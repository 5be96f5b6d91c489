# SPDX-License-Identifier: Apache-2.0
"""The serve stage: python scripts/serve.py --config=configs/serve/tiny.py --workdir=DIR"""

from llm.core import launch

if __name__ == "__main__":
    launch.run("serve")

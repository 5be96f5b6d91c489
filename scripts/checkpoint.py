# SPDX-License-Identifier: Apache-2.0
"""List, verify, compare and export checkpoints: python scripts/checkpoint.py verify WORKDIR."""

import sys

from llm.core.checkpoint_tool import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

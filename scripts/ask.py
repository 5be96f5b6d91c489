# SPDX-License-Identifier: Apache-2.0
"""Ask a running server: python scripts/ask.py --workdir=runs/serve --question="What is …?"."""

import sys

from llm.serve.client import main

if __name__ == "__main__":
    sys.exit(main())

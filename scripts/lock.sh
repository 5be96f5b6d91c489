#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Write requirements.lock: constraints.txt's versions with the hashes of their files, for Python 3.11
# on Linux. Needs the network and `uv` (pip install uv). Install from it with
#   pip install --require-hashes -r requirements.lock && pip install --no-deps -e .
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv pip compile setup.py --extra dev --constraint constraints.txt --generate-hashes \
  --python-version 3.11 --python-platform linux --no-annotate --no-header \
  --no-emit-index-url --quiet --output-file requirements.lock

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Look for unsafe code and for dependencies with known weaknesses: bash scripts/audit.sh
# Needs bandit and pip-audit (pip install bandit pip-audit). pip-audit asks the public advisory
# database, so it needs the network; --offline leaves it out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bandit --quiet --severity-level medium --recursive llm scripts configs
if [ "${1:-}" = --offline ]; then
  echo "Dependencies were not audited: that needs the network."
else
  pip-audit --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off
fi

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Check style and types and run the tests: bash scripts/test.sh [--slow] [pytest options]
# --slow adds the TPU-compiler, real-model, campaign and browser tiers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev

ruff check .
ruff format --check .
mypy
# Two workers: most of the time goes into compiling, which uses one core.
exec python -m pytest -n "${JOBS:-2}" --dist loadfile "$@"

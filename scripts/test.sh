#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Check style and types and run the tests: bash scripts/test.sh [--slow | --faults] [pytest options]
# --slow adds the TPU-compiler, real-model, campaign and browser tiers. --faults runs only the
# injected faults of docs/faults.md, all of them (scripts/soak.py makes longer campaigns).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" dev

if [ "${1:-}" = "--faults" ]; then
  shift
  mapfile -t faults < <(python tests/faults/rows.py)
  exec python -m pytest -n "${JOBS:-2}" --dist loadfile --slow "${faults[@]}" "$@"
fi
case " $* " in *" --slow "*)
  if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing chromium for the browser tier"
    { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; } \
      >/dev/null 2>&1 || echo "  it cannot be installed: the browser tier is skipped"
  fi ;;
esac
ruff check .
ruff format --check .
mypy
# Two workers: most of the time goes into compiling, which uses one core.
exec python -m pytest -n "${JOBS:-2}" --dist loadfile "$@"

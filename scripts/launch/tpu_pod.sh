#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run one command on every worker of a Cloud TPU slice:
#   bash scripts/launch/tpu_pod.sh NAME ZONE [--dry_run] -- COMMAND…
# The repository is copied to each worker and installed there with the tpu extra. A run that was
# preempted (exit code 75) is started again and resumes from its checkpoint.
set -euo pipefail
usage="usage: tpu_pod.sh NAME ZONE [--dry_run] -- COMMAND…"
name=${1:?$usage} zone=${2:?$usage}
shift 2
dry=""
[ "${1:-}" = "--dry_run" ] && { dry=echo; shift; }
[ "${1:-}" = "--" ] || { echo "$usage" >&2; exit 2; }
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
command=$(printf '%q ' "$@")

$dry gcloud compute tpus tpu-vm scp --recurse --worker=all --zone="$zone" \
  "$root/llm" "$root/configs" "$root/scripts" "$root/setup.py" "$root/pyproject.toml" \
  "$root/constraints.txt" "$name:jax-llm/"
$dry gcloud compute tpus tpu-vm ssh "$name" --worker=all --zone="$zone" --command="
  set -e; cd jax-llm; python3 -m venv .venv; . .venv/bin/activate
  pip install -q -c constraints.txt -e '.[tpu]'
  code=75; while [ \$code -eq 75 ]; do code=0; $command --distributed || code=\$?; done; exit \$code"

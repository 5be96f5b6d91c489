#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run one command on every worker of a Cloud TPU slice:
#   bash scripts/launch/tpu_pod.sh NAME ZONE [--dry-run] -- COMMAND…
# The repository is copied to each worker and installed there with the tpu extra. A run that was
# preempted (exit code 75), lost a worker (6) or was killed is started again at most RESTARTS times
# (20) and resumes from its checkpoint. --dry-run prints the commands.
set -euo pipefail
usage="usage: tpu_pod.sh NAME ZONE [--dry-run] -- COMMAND…"
name=${1:?$usage} zone=${2:?$usage}
shift 2
run() { "$@"; }
case "${1:-}" in --dry-run | --dry_run) run() { printf '%s\n' "$*"; }; shift ;; esac
[ "${1:-}" = "--" ] && [ $# -gt 1 ] || { echo "$usage" >&2; exit 2; }
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
command=$(printf '%q ' "$@")

cd "$root"
run gcloud compute tpus tpu-vm scp --recurse --worker=all --zone="$zone" \
  llm configs scripts setup.py pyproject.toml constraints.txt "$name:jax-llm/"
run gcloud compute tpus tpu-vm ssh "$name" --worker=all --zone="$zone" --command="
  set -e; cd jax-llm; python3 -m venv .venv; . .venv/bin/activate
  pip install -q -c constraints.txt -e '.[tpu]'
  exec python scripts/supervise.py --restarts=${RESTARTS:-20} -- $command--distributed"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run one command on the TPU slices of a GKE cluster with xpk:
#   bash scripts/launch/xpk.sh NAME CLUSTER TPU_TYPE IMAGE [--dry-run] -- COMMAND…
# IMAGE holds the repository in its working directory, installed with the tpu extra. SLICES (1) is
# the number of slices; set config.mesh.dcn to it. A process that was killed or lost a peer (exit
# code 6) is started again in its pod; a pod that was preempted (75) by the cluster, both at most
# RESTARTS times (20). --dry-run prints the command.
set -euo pipefail
usage="usage: xpk.sh NAME CLUSTER TPU_TYPE IMAGE [--dry-run] -- COMMAND…"
name=${1:?$usage} cluster=${2:?$usage} type=${3:?$usage} image=${4:?$usage}
shift 4
run() { "$@"; }
[ "${1:-}" = "--dry-run" ] && { run() { printf '%s\n' "$*"; }; shift; }
[ "${1:-}" = "--" ] && [ $# -gt 1 ] || { echo "$usage" >&2; exit 2; }
shift
restarts=${RESTARTS:-20}
command=$(printf '%q ' "$@")
run xpk workload create --workload="$name" --cluster="$cluster" --tpu-type="$type" \
  --num-slices="${SLICES:-1}" --docker-image="$image" \
  --max-restarts="$restarts" --restart-on-exit-codes=6,75 \
  --command="python scripts/supervise.py --restarts=$restarts -- $command--distributed"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One process per GPU node under Slurm:
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch/slurm.sh python scripts/pretrain.py …
# JAX finds its peers from Slurm's environment. Inside the allocation a process that was killed or
# lost a peer (exit code 6) is started again; a job that was preempted (75), or whose restarts are
# used up, is queued again, each at most RESTARTS times (20). `bash scripts/launch/slurm.sh --dry-run
# COMMAND…` prints the commands.
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -uo pipefail
run() { "$@"; }
[ "${1:-}" = "--dry-run" ] && { run() { printf '%s\n' "$*"; }; shift; }
[ $# -gt 0 ] || { echo "usage: sbatch … scripts/launch/slurm.sh [--dry-run] COMMAND…" >&2; exit 2; }
restarts=${RESTARTS:-20}
run srun --kill-on-bad-exit=1 \
  python scripts/supervise.py --restarts="$restarts" -- "$@" --distributed
code=$?
case $code in
  6 | 75 | 137 | 143)
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$restarts" ]; then
      run scontrol requeue "${SLURM_JOB_ID:?}"
    else
      echo "slurm.sh: given up after $restarts restarts (exit code $code)" >&2
    fi ;;
esac
exit $code

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One process per GPU node under Slurm:
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch/slurm.sh python scripts/pretrain.py …
# JAX finds its peers from Slurm's environment. A preempted run (exit code 75) is queued again.
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -uo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch … scripts/launch/slurm.sh COMMAND…" >&2; exit 2; }
srun --kill-on-bad-exit=1 "$@" --distributed
code=$?
[ $code -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit $code

#!/usr/bin/env bash
# Clean up what a job may have left on a node, for slurm.conf: Epilog=/etc/slurm/epilog.sh
#
# It acts only after a user's last job on the node, and only on what belongs to that user.
set -uo pipefail

user=${SLURM_JOB_USER:-}
[[ -n $user && $user != root ]] || exit 0
others=$(squeue -h -o %i -u "$user" -w "${SLURMD_NODENAME:-$(hostname -s)}" -t running,completing 2>/dev/null |
  grep -vcx "${SLURM_JOB_ID:-}")
((others == 0)) || exit 0

# Ranks that outlived their step hold GPU memory and would keep training next to those of the next start.
pkill -KILL -u "$user" 2>/dev/null

# Shared memory of killed processes: data loaders, NCCL, gloo.
find /dev/shm -mindepth 1 -maxdepth 1 -user "$user" -exec rm -rf {} + 2>/dev/null

# GPUs that are still in use now are held by processes that cannot be killed: drain the node.
if [[ -e /dev/nvidia0 ]] && command -v nvidia-smi >/dev/null; then
  left=$(timeout 20 nvidia-smi --query-compute-apps=pid --format=csv,noheader | wc -l)
  ((left == 0)) || scontrol update NodeName="${SLURMD_NODENAME:-$(hostname -s)}" State=DRAIN \
    Reason="epilog: $left processes hold its GPUs"
fi
exit 0

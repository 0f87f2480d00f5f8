#!/usr/bin/env bash
# Check a node before a job gets it, for slurm.conf: Prolog=/etc/slurm/prolog.sh
#
# It does not need distllm and takes a few seconds. When it fails, SLURM drains the node with "Prolog error" and
# holds the job; `scontrol release JOB` lets it run elsewhere (or set SchedulerParameters=nohold_on_prolog_fail).
# Checks that take longer, or need several nodes, belong to the health check of distllm's job script.
set -uo pipefail

fail() {
  logger -t slurm-prolog "job ${SLURM_JOB_ID:-?}: $1"
  scontrol update NodeName="${SLURMD_NODENAME:-$(hostname -s)}" State=DRAIN Reason="prolog: $1" 2>/dev/null
  exit 1
}

# Disks: free space where jobs write on the node itself.
for directory in /tmp /dev/shm; do
  free=$(df --output=avail -k "$directory" | tail -n 1) || fail "$directory does not answer"
  ((free > 1048576)) || fail "less than 1 GiB free in $directory"
done

# Clock: leases and logs are compared by time.
if command -v timedatectl >/dev/null; then
  [[ $(timedatectl show --property=NTPSynchronized --value 2>/dev/null) != no ]] || fail "clock is not synchronised"
fi

# GPUs: all present, none with uncorrected memory errors, none slowed down by heat or power.
if [[ -e /dev/nvidia0 ]] && command -v nvidia-smi >/dev/null; then
  there=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
  rows=$(timeout 20 nvidia-smi --query-gpu=index,ecc.errors.uncorrected.volatile.total,clocks_throttle_reasons.hw_slowdown \
    --format=csv,noheader,nounits) || fail "nvidia-smi does not answer"
  (($(wc -l <<<"$rows") == there)) || fail "nvidia-smi shows $(wc -l <<<"$rows") of $there GPUs"
  while IFS=', ' read -r index errors slowed; do
    [[ $errors =~ ^[0-9]+$ ]] && ((errors > 0)) && fail "GPU $index has $errors uncorrected memory errors"
    [[ $slowed == Active ]] && fail "GPU $index is slowed down by its hardware"
  done <<<"$rows"
  if command -v dcgmi >/dev/null; then
    timeout 60 dcgmi diag -r 1 >/dev/null || fail "dcgmi diag -r 1 fails"
  fi
fi

# InfiniBand: every connected port is active.
for state in /sys/class/infiniband/*/ports/*/state; do
  [[ -e $state ]] || continue
  phys=$(<"${state%state}phys_state")
  [[ $phys != *LinkUp* || $(<"$state") == *ACTIVE* ]] || fail "${state#/sys/class/infiniband/} is not active"
done
exit 0

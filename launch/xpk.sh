#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster through XPK (pip install xpk), on one slice or several.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/xpk.sh --cluster CLUSTER --name NAME --zone ZONE --type TYPE --workdir gs://bucket/folder --config FILE
                     [--project ID] [--slices N] [--priority P] [--dry-run] [-- ARG...]

Submits a workload: XPK adds the current folder to the image python:3.11, each host installs the locked versions and starts
`maskgil train`. Kubernetes restarts it up to 50 times after a preemption or an exit code of a temporary failure (see
launch/gpu.sh), and the training resumes from the last checkpoint in the workdir. With N slices, gradients of N data-parallel
replicas are summed over the data-centre network (mesh axis dcn_data=N).

  --type TYPE    e.g. v5litepod-256
  --slices N     default 1
  --priority P   very-low, low, medium (default), high, very-high
  --dry-run      print the xpk command instead of executing it
  -- ARG...      passed to `maskgil train` unchanged

Create a cluster once:
  xpk cluster create --cluster CLUSTER --zone ZONE --tpu-type TYPE --num-slices N --spot
The log: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0
Delete:  xpk workload delete --cluster CLUSTER --zone ZONE --workload NAME
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/options.sh
source "$here/options.sh"

cluster="" name="" zone="" project="" type="" workdir="" config="" slices=1 priority=medium dry_run=false
parse_options "cluster name zone project type workdir config slices priority" "dry-run" "$@"
need cluster name zone type config workdir
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices: expected a number, got '$slices'"
((slices == 1)) || arguments=("--config.mesh.dcn_data=$slices" ${arguments[@]+"${arguments[@]}"})

cd "$here/.."
inside="bash launch/worker.sh install && bash launch/worker.sh run$(printf ' %q' "$workdir" --config "$config" \
    --workdir "$workdir" ${arguments[@]+"${arguments[@]}"})"
submit=(xpk workload create --cluster "$cluster" --zone "$zone" ${project:+--project "$project"} --workload "$name"
    --tpu-type "$type" --num-slices "$slices" --priority "$priority" --base-docker-image python:3.11 --script-dir "$PWD"
    --max-restarts 50 --restart-on-exit-codes "5,75,134" --command "$inside")
if $dry_run; then
    printf '%q ' "${submit[@]}"
    echo
else
    "${submit[@]}"
fi

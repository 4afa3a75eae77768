#!/usr/bin/env bash
# Trains on a Cloud TPU of one or many hosts, from any machine with `gcloud`; resumes after every preemption.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/tpu.sh COMMAND --name NAME --zone ZONE [options] [-- ARG...]

commands
  run      create the TPU if it does not exist, install, train, print the log of worker 0; repeat after a preemption
  logs     print the log of worker 0 of a running training
  stop     send SIGTERM: the training saves a checkpoint and exits
  delete   delete the TPU (and its queued resource)

options
  --name NAME        name of the TPU (and of its queued resource)
  --zone ZONE        e.g. us-west4-a
  --project ID       default: gcloud's current project
  --type TYPE        for `run`: v5litepod-16, v5p-64, v6e-256, ...
  --runtime VERSION  TPU software version (default: chosen by TYPE)
  --queued           create a queued resource and wait until it is granted
  --spot             use spot capacity: cheaper, can be preempted at any time
  --workdir DIR      for `run`: gs://bucket/folder
  --config FILE      for `run`: run file of the training
  --copy SRC DST     copy gs://... onto every worker before training; may be repeated
  --restarts N       maximum number of preemptions and restarts (default 50)
  --poll SECONDS     interval between status requests while a TPU is being created (default 30)
  --dry-run          print the commands of a run without preemptions instead of executing them
  -- ARG...          passed to `maskgil train` unchanged, e.g. -- --config.batch_size=1024

Installs the current commit with the versions of requirements.lock. Exit code: that of `maskgil train`; 2 for wrong usage;
1 if a gcloud command failed.

example
  launch/tpu.sh run --name b-run --zone us-west4-a --type v5litepod-64 --spot --queued --workdir gs://bucket/runs/c2i_b \
      --config configs/c2i_b.py -- --config.tokenizer=gs://bucket/vq16 --config.data.codes=gs://bucket/codes/imagenet_vq16
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/options.sh
source "$here/options.sh"

command=${1:-}
case $command in
run | logs | stop | delete) shift ;;
-h | --help)
    usage
    exit 0
    ;;
"") fail "needs a command: run, logs, stop or delete; see --help" ;;
*) fail "unknown command '$command': run, logs, stop or delete" ;;
esac

name="" zone="" project="" type="" runtime="" workdir="" config="" restarts=50 poll=30 queued=false spot=false dry_run=false
parse_options "name zone project type runtime workdir config restarts poll copy:2" "queued spot dry-run" "$@"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name: expected lower-case letters, digits and dashes, got '$name'"
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone: expected something like us-west4-a, got '$zone'"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts: expected a number, got '$restarts'"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--poll: expected seconds, got '$poll'"
if [[ $command == run ]]; then
    need type config workdir
    case ${runtime:=$type} in # the documented software version of each TPU generation
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    "$type") fail "--runtime: missing; no default is known for type '$type'" ;;
    esac
fi

where=(--zone "$zone" ${project:+--project "$project"})
vm=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

# Runs every command that changes something, so that --dry-run prints exactly what would be executed.
act() {
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

state() { # state of the TPU: READY, CREATING, PREEMPTED, ...; empty if it does not exist
    "${vm[@]}" describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || true
}

queue_state() { # state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, FAILED, SUSPENDED, ...
    "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

remove() {
    if $queued; then
        act "${queue[@]}" delete "$name" "${where[@]}" --force --quiet
    else
        act "${vm[@]}" delete "$name" "${where[@]}" --quiet
    fi
}

create() {
    local price=()
    if $spot; then price=(--spot); fi
    if $queued; then
        act "${queue[@]}" create "$name" --node-id "$name" "${where[@]}" --accelerator-type "$type" --runtime-version "$runtime" \
            ${price[@]+"${price[@]}"}
    else
        act "${vm[@]}" create "$name" "${where[@]}" --accelerator-type "$type" --version "$runtime" ${price[@]+"${price[@]}"}
    fi
}

# Waits for a ready TPU: the existing one or a new one. Preempted and failed ones are deleted first.
have_tpu() {
    local found="" waiting=""
    if $dry_run; then
        create
        return
    fi
    while true; do
        found=$(state)
        if $queued; then waiting=$(queue_state); fi
        case $found/$waiting in
        READY/ | READY/ACTIVE) return 0 ;;
        PREEMPTED/* | TERMINATED/* | STOPPED/* | */FAILED | */SUSPENDED)
            say "$name is ${found:-absent} ${waiting:+($waiting)}: deleting it"
            remove
            ;;
        /)
            say "creating $name ($type)"
            create || return 1
            ;;
        *) # being created, repaired or deleted
            say "waiting for $name: ${waiting:-$found}"
            sleep "$poll"
            ;;
        esac
    done
}

on_all() { act "${vm[@]}" ssh "$name" "${where[@]}" --worker=all --command "$1"; }
on_first() { act "${vm[@]}" ssh "$name" "${where[@]}" --worker=0 --command "$1"; }

install() {
    local archive=$1 folder=maskgil_jax pair
    act "${vm[@]}" scp "$archive" "$name:maskgil_jax.tar.gz" "${where[@]}" --worker=all || return
    on_all "mkdir -p $folder && tar -xzf maskgil_jax.tar.gz -C $folder && bash $folder/launch/worker.sh install" || return
    for ((pair = 0; pair < ${#pairs[@]}; pair += 2)); do
        on_all "cd $folder && mkdir -p $(printf %q "${pairs[pair + 1]}") &&$(printf ' %q' gcloud storage rsync --recursive \
            "${pairs[pair]}" "${pairs[pair + 1]}")" || return
    done
}

train() {
    local start
    start="cd maskgil_jax && bash launch/worker.sh start$(printf ' %q' "$workdir" --config "$config" --workdir "$workdir" \
        ${arguments[@]+"${arguments[@]}"})"
    on_all "$start" || return
    on_first 'bash maskgil_jax/launch/worker.sh follow'
}

case $command in
logs)
    on_first 'bash maskgil_jax/launch/worker.sh follow'
    exit
    ;;
stop)
    on_all 'bash maskgil_jax/launch/worker.sh stop'
    exit
    ;;
delete)
    # Also without --queued: a TPU of a queued resource is deleted with it.
    [[ -z $(queue_state) ]] || queued=true
    remove
    exit
    ;;
esac

root=$(dirname "$here")
commit=$(git -C "$root" rev-parse HEAD) || fail "$root: not a git clone; its current commit is what gets installed"
[[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] || say "warning: uncommitted changes are not installed"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
archive=$scratch/maskgil_jax-$commit.tar.gz
$dry_run || git -C "$root" archive --format=tar.gz -o "$archive" "$commit"

for ((attempt = 0; ; attempt++)); do
    code=0
    have_tpu || exit 1
    install "$archive" || code=$?
    ((code)) || train || code=$?
    ((code)) || exit 0
    # On a TPU that still exists an exit code is final, except for temporary failures: 75, a step hung (5), another worker died
    # (134: JAX aborts), the connection was lost (255).
    now=$(state)
    if [[ $now == READY ]]; then
        case $code in
        75 | 5 | 134 | 255) ;;
        *) exit "$code" ;;
        esac
    fi
    ((attempt < restarts)) || {
        say "giving up after $((attempt + 1)) attempts; last exit code $code"
        exit "$code"
    }
    say "exit code $code, $name is ${now:-deleted}: restarting from the last checkpoint in $workdir"
    if [[ $now == READY ]]; then on_all 'bash maskgil_jax/launch/worker.sh stop' || true; fi
    sleep "$poll"
done

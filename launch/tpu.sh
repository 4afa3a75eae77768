#!/usr/bin/env bash
# Trains on a Cloud TPU, of one machine or many, from any machine with `gcloud`; goes on after every preemption.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/tpu.sh COMMAND --name NAME --zone ZONE [options] [-- ARG...]

commands
  run      create the TPU if it is not there, install, train, print the log of worker 0; after a preemption do it all again
  logs     print the log of worker 0 of a training that runs
  stop     ask the training to save and end
  delete   delete the TPU (and its queued resource)

options
  --name NAME        name of the TPU (and of its queued resource)
  --zone ZONE        e.g. us-west4-a
  --project ID       default: gcloud's own
  --type TYPE        for `run`: v5litepod-16, v5p-64, v6e-256, ...
  --runtime VERSION  of the machines' image (default: told by TYPE)
  --queued           ask through the queue (queued resources) and wait for it, instead of now or never
  --spot             cheaper, and may be taken away at any time
  --workdir DIR      for `run`: gs://bucket/folder; must outlive the machines
  --config FILE      for `run`: run file of the training
  --copy SRC DST     copy gs://... onto every worker before training; may be repeated
  --restarts N       after how many preemptions or retries to give up (default 50)
  --poll SECONDS     between looks at a TPU that is being made (default 30)
  --dry-run          print the commands of an undisturbed run, as they would be called, and call none
  -- ARG...          go to `maskgil train` as they are, e.g. -- --config.batch_size=1024

The code is that of the current commit, the versions those of requirements.lock. Exit code: the training's own, see
`maskgil train`; 2 for wrong usage; 1 if a gcloud command failed.

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
    case ${runtime:=$type} in # the image that each generation is documented to boot
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v[234]-*) runtime=tpu-ubuntu2204-base ;;
    "$type") fail "--runtime: missing; not known for type '$type'" ;;
    esac
fi

where=(--zone "$zone" ${project:+--project "$project"})
vm=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

# Every command that changes something goes through here, so that --dry-run shows exactly what would be called.
act() {
    if $dry_run; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

state() { # of the TPU: READY, CREATING, PREEMPTED, ...; empty if there is none
    "${vm[@]}" describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || true
}

queue_state() { # of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, FAILED, SUSPENDED, ...
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

# Leaves a TPU that is ready: the one that is there, or a new one. What was taken away or failed is deleted first.
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
            say "$name is ${found:-gone} ${waiting:+($waiting)}: deleting it"
            remove
            ;;
        /)
            say "creating $name ($type)"
            create || return 1
            ;;
        *) # being made, repaired or deleted
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
    # Without --queued too: a TPU made by the queue is deleted with its request.
    [[ -z $(queue_state) ]] || queued=true
    remove
    exit
    ;;
esac

root=$(dirname "$here")
commit=$(git -C "$root" rev-parse HEAD) || fail "$root: not a git clone, so there is no commit to install"
[[ -z $(git -C "$root" status --porcelain --untracked-files=no) ]] || say "uncommitted changes are not part of what is installed"
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
    # On a TPU that is still there a code is final, but for those that may pass: try later (75), a step hung (5), another worker
    # died (134: JAX aborts), the connection broke (255).
    now=$(state)
    if [[ $now == READY ]]; then
        case $code in
        75 | 5 | 134 | 255) ;;
        *) exit "$code" ;;
        esac
    fi
    ((attempt < restarts)) || {
        say "given up after $((attempt + 1)) attempts; the last ended with code $code"
        exit "$code"
    }
    say "ended with code $code, $name is ${now:-gone}: again, from the last checkpoint in $workdir"
    if [[ $now == READY ]]; then on_all 'bash maskgil_jax/launch/worker.sh stop' || true; fi
    sleep "$poll"
done

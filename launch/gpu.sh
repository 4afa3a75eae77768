#!/usr/bin/env bash
# Trains on one machine with GPUs, or on one of several: sets the flags of flags.sh and restarts after temporary failures.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/gpu.sh [--dry-run] [--restarts N] --config FILE --workdir DIR [other options of `maskgil train`]

Trains on all GPUs of this machine. It is restarted from its last checkpoint when it exits with code 75 (temporary failure), 5
(a step hung) or 134 (another machine died and JAX aborted), at most N times. SIGTERM and Ctrl-C reach the training as SIGTERM.

  --dry-run     print the environment and the command instead of running them
  --restarts N  maximum number of restarts (default 3)

Several machines: the same command on each, with --coordinator HOST:PORT --num-processes N --process-id I; under SLURM use
launch/slurm.sbatch. MASKGIL sets the command that replaces `maskgil`, e.g. MASKGIL=.venv/bin/maskgil.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/flags.sh
source "$here/flags.sh"
# shellcheck source=launch/options.sh
source "$here/options.sh"

dry_run=false restarts=3 workdir="" arguments=()
while (($#)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --dry-run) dry_run=true ;;
    --restarts)
        [[ ${2:-} =~ ^[0-9]+$ ]] || fail "--restarts: expected a number, got '${2:-}'"
        restarts=$2
        shift
        ;;
    --workdir)
        [[ -n ${2:-} ]] || fail "--workdir: needs a folder"
        workdir=$2
        arguments+=(--workdir "$2")
        shift
        ;;
    --workdir=*)
        workdir=${1#*=}
        arguments+=("$1")
        ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
[[ -n $workdir ]] || fail "--workdir: missing; see launch/gpu.sh --help"

gpu_flags
compilation_cache "$workdir"
command=("${MASKGIL:-maskgil}" train "${arguments[@]}")
if $dry_run; then
    printf '%s=%q ' XLA_FLAGS "$XLA_FLAGS" XLA_PYTHON_CLIENT_MEM_FRACTION "$XLA_PYTHON_CLIENT_MEM_FRACTION" \
        JAX_COMPILATION_CACHE_DIR "$JAX_COMPILATION_CACHE_DIR"
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi

stopped=false
forward_signal() { # to the last child, which $! is from its start on
    stopped=true
    kill -TERM "${!:-}" 2>/dev/null || true
}
trap forward_signal TERM INT # TERM for both, because background processes of a script ignore INT
for ((attempt = 0; ; attempt++)); do
    "${command[@]}" &
    child=$!
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal interrupts `wait`; the training may still be saving
        code=0
        wait "$child" || code=$?
    done
    if [[ $code != 75 && $code != 5 && $code != 134 ]] || $stopped || ((attempt >= restarts)); then
        exit "$code"
    fi
    echo "gpu.sh: exit code $code; attempt $((attempt + 2)) of $((restarts + 1)) in ${RETRY_SECONDS:-30} s" >&2
    for ((second = 0; second < ${RETRY_SECONDS:-30}; second++)); do # traps run when the current `sleep` ends
        $stopped || sleep 1
    done
    if $stopped; then exit "$code"; fi
done

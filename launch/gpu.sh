#!/usr/bin/env bash
# One machine with GPUs, or one of several: sets the flags of flags.sh, trains, and tries again after what may pass.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/gpu.sh [--dry-run] [--restarts N] --config FILE --workdir DIR [other options of `maskgil train`]

Trains on all GPUs of this machine. The run is continued when it ends with code 75 (try later), 5 (a step hung) or 134 (another
machine died, and JAX aborted), at most N times (default 3). SIGTERM and Ctrl-C are handed on to the training as SIGTERM.

  --dry-run     print the environment and the command instead of running them
  --restarts N  how often to try again (default 3)

Several machines: the same command on each, with --coordinator HOST:PORT --num-processes N --process-id I; under SLURM use
launch/slurm.sbatch. MASKGIL names another command than `maskgil`, e.g. MASKGIL=.venv/bin/maskgil.
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

child="" stopped=false
hand_on() {
    stopped=true
    [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap hand_on TERM INT # TERM for both: what a script starts in the background ignores INT
for ((attempt = 0; ; attempt++)); do
    "${command[@]}" &
    child=$!
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` early; the training may still be saving
        code=0
        wait "$child" || code=$?
    done
    if [[ $code != 75 && $code != 5 && $code != 134 ]] || $stopped || ((attempt >= restarts)); then
        exit "$code"
    fi
    echo "gpu.sh: ended with code $code; attempt $((attempt + 2)) of $((restarts + 1)) in ${RETRY_SECONDS:-30} s" >&2
    for ((second = 0; second < ${RETRY_SECONDS:-30}; second++)); do # a signal is heeded at the end of a `sleep`
        $stopped || sleep 1
    done
    if $stopped; then exit "$code"; fi
done

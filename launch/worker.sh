#!/usr/bin/env bash
# Installs and trains on one worker of a TPU. launch/tpu.sh runs it on all workers; it can also be used by hand.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/worker.sh install              create a virtual environment with the locked versions
       launch/worker.sh run WORKDIR ARG...   run `maskgil train ARG...` with the TPU flags
       launch/worker.sh start WORKDIR ARG... the same in the background, unless already running
       launch/worker.sh follow               print the log until the training ends, then exit with its code
       launch/worker.sh stop                 send SIGTERM and wait until the training has saved; SIGKILL after two minutes

Log, process id and exit code are in ~/maskgil_run (MASKGIL_RUN_DIR).
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
run=${MASKGIL_RUN_DIR:-$HOME/maskgil_run}
mkdir -p "$run"
# shellcheck source=launch/flags.sh
source "$here/flags.sh"

running() {
    [[ -s $run/pid ]] && kill -0 "$(<"$run/pid")" 2>/dev/null
}

case ${1:-} in
install)
    # The Python of TPU machines is older than the package needs; uv installs a newer one.
    cd "$root"
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    export PATH="$HOME/.local/bin:$PATH"
    uv venv --quiet --allow-existing --python 3.11 .venv
    uv pip install --quiet --python .venv/bin/python -c requirements.lock -e '.[tpu,gcs]'
    ;;
run)
    tpu_flags
    compilation_cache "$2"
    exec "${MASKGIL:-$root/.venv/bin/maskgil}" train "${@:3}"
    ;;
start)
    running && exit 0
    shift
    rm -f "$run/code" "$run/pid"
    : >"$run/log"
    # setsid: the training survives the end of the ssh connection.
    # shellcheck disable=SC2016  # expanded by the inner shell
    setsid bash -c 'run=$1; shift; code=0; "$@" >>"$run/log" 2>&1 & echo $! >"$run/pid"; wait $! || code=$?; echo "$code" >"$run/code"' \
        worker "$run" bash "$here/worker.sh" run "$@" </dev/null >/dev/null 2>&1 &
    until [[ -s $run/pid ]]; do sleep 0.1; done
    ;;
follow)
    for _ in {1..50}; do
        [[ -s $run/pid || -s $run/code ]] && break
        sleep 0.1
    done
    [[ -s $run/pid ]] || {
        echo "worker.sh: no training was started on this machine" >&2
        exit 2
    }
    tail -n +1 --pid="$(<"$run/pid")" -s 0.5 -f "$run/log"
    for _ in {1..50}; do
        [[ -s $run/code ]] && exit "$(<"$run/code")"
        sleep 0.1
    done
    echo "worker.sh: the training ended without an exit code; the machine may have been restarted" >&2
    exit 75
    ;;
stop)
    running || exit 0
    kill -TERM "$(<"$run/pid")"
    for _ in {1..600}; do
        running || exit 0
        sleep 0.2
    done
    kill -KILL "$(<"$run/pid")"
    ;;
-h | --help) usage ;;
*)
    usage >&2
    exit 2
    ;;
esac

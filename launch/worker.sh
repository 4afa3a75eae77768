#!/usr/bin/env bash
# What launch/tpu.sh runs on the workers of a TPU, on every one the same. It can be used by hand too.
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/worker.sh install              a virtual environment with the locked versions
       launch/worker.sh run WORKDIR ARG...   `maskgil train ARG...` with the flags for TPUs
       launch/worker.sh start WORKDIR ARG... the same in the background, unless it runs already
       launch/worker.sh follow               print the log until the training ends, then exit with its code
       launch/worker.sh stop                 SIGTERM, then wait: the training saves and ends (killed after two minutes)

Log, process id and exit code lie in ~/maskgil_run (MASKGIL_RUN_DIR).
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
    # TPU machines come with an older Python than the package needs; uv brings one along.
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
    # A session of its own: it lives on when the connection that started it ends.
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
        echo "worker.sh: no training was started here" >&2
        exit 2
    }
    tail -n +1 --pid="$(<"$run/pid")" -s 0.5 -f "$run/log"
    for _ in {1..50}; do
        [[ -s $run/code ]] && exit "$(<"$run/code")"
        sleep 0.1
    done
    echo "worker.sh: the training ended without an exit code (was this machine restarted?)" >&2
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

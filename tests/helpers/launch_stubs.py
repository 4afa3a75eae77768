"""Stub programs that record their calls, and a function that runs the launch scripts with them."""

import json
import os
import pathlib
import stat
import subprocess
import sys

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"

# Appends each call to the file `calls` as a JSON line. Answers with the next line of answers/KIND, "exit code, output";
# the last line is repeated.
STUB = """#!{python} -SE
import json, os, pathlib, sys
box = pathlib.Path({box!r})
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with open(box / "calls", "a") as calls:
    calls.write(json.dumps(argv) + "\\n")
kind = argv[0]
if kind == "gcloud":
    kind = argv[4] if argv[4] != "ssh" else next(w for w in {over_ssh!r} if w in argv[-1])
    kind = ("queue_" if argv[3] == "queued-resources" else "") + kind
file = box / "answers" / kind
lines = file.read_text().splitlines() if file.exists() else ["0 "]
if len(lines) > 1:
    file.write_text("\\n".join(lines[1:]) + "\\n")
code, _, text = lines[0].partition(" ")
if text:
    print(text)
sys.exit(int(code))
"""
# Compressing the repository takes a second and most tests only check where it is sent, so the archive is one byte.
SHORT_ARCHIVE = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "tar.tar.gz.command",
    "GIT_CONFIG_VALUE_0": "tail -c 1",
}
OVER_SSH = ("worker.sh install", "worker.sh start", "worker.sh follow", "worker.sh stop", "rsync")


def write_stubs(tmp_path):
    """Writes the stub programs to `tmp_path`/bin, which `launch` puts first on PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "answers").mkdir()
    for name in ("gcloud", "ssh", "xpk", "maskgil", "srun", "scontrol"):
        stub = tmp_path / "bin" / name
        stub.write_text(STUB.format(python=sys.executable, box=str(tmp_path), over_ssh=OVER_SSH))
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def answers(box, **lines):
    for kind, answer in lines.items():
        kind = f"worker.sh {kind}" if f"worker.sh {kind}" in OVER_SSH else kind
        (box / "answers" / kind).write_text("\n".join(answer) + "\n")


def launch(box, script, *arguments, **variables):
    env = {**os.environ, **SHORT_ARCHIVE, "PATH": f"{box / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(box), **variables}
    return subprocess.run(["bash", str(LAUNCH / script), *arguments], env=env, capture_output=True, text=True, timeout=60)


def calls(box, *, looks=False):
    """What the stubs were called with; looking at the state of things (describe) changes nothing and is left out."""
    file = box / "calls"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [argv for argv in lines if looks or "describe" not in argv]

"""A run of random changes to files from outside: each is read, or refused in one line, in time and within memory.

FUZZ_SECONDS: the length of the run (default 20). FUZZ_SEED: another sequence of changes. CONTRIBUTING.md says more.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
CORPUS = TESTS / "golden" / "fuzz"
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through /proc and setrlimit")


def fuzz(*arguments) -> dict:
    """What `helpers.fuzz_readers` reports."""
    command = [sys.executable, "-m", "helpers.fuzz_readers", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "RUST_BACKTRACE": "0"}
    done = subprocess.run(command, cwd=TESTS, env=env, capture_output=True, text=True, timeout=SECONDS + 300)
    assert done.stdout.startswith("{"), done.stderr[-3000:]  # anything else: the process itself died
    return json.loads(done.stdout)


def test_corpus_is_read_and_found_files_stay_mended():
    files = [*sorted(CORPUS.glob("*-*")), *sorted((CORPUS / "found").glob("*-*"))]
    assert len(files) >= 20
    assert fuzz("--replay", *files) == {"files": len(files), "faults": []}


def test_corpus_is_what_its_script_writes():
    sys.path.insert(0, str(CORPUS))
    try:
        import make_corpus
    finally:
        sys.path.remove(str(CORPUS))
    assert {name: (CORPUS / name).read_bytes() for name in make_corpus.files()} == make_corpus.files()


@pytest.mark.slow
def test_changed_files_are_read_or_refused_in_one_line(tmp_path):
    found = fuzz("--seconds", SECONDS, "--seed", os.environ.get("FUZZ_SEED", "0"), "--out", tmp_path / "found")
    assert found["faults"] == [] and found["files"] >= 100

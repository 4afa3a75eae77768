"""Every bad weight file is refused in time, within memory, with one line that names the file and the key, and nothing runs."""

import json
import pathlib
import subprocess
import sys

import pytest
from bad_files import Case, build, hostile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
ROOT = pathlib.Path(__file__).parent.parent
SECONDS, MEGABYTES = 5.0, 200

# One process reads all of them: starting one per file would take longer than the reading.
READ_ALL = """
import json, pathlib, sys, time
from maskgil_jax.convert.checkpoint import BadWeightFile
from maskgil_jax.convert.torch_files import read

def memory(field):  # MB; getrusage would also count the process that started this one
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024

ran = []
watched = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "exec")
sys.addaudithook(lambda event, _: ran.append(event) if event in watched else None)
results = {}
for name, path in json.load(sys.stdin):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    start, began = memory("VmRSS"), time.process_time()
    try:
        read(path, verify=True).verify(finite=True)
        said = None
    except BadWeightFile as error:
        said = str(error)
    except BaseException as error:
        said = f"CRASH {type(error).__name__}: {error}"
    results[name] = [said, time.process_time() - began, memory("VmHWM") - start]
json.dump({"results": results, "ran": ran, "torch": "torch" in sys.modules}, sys.stdout)
"""

NAMES = [case.name for case in build(None, pathlib.Path("marker"))]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("bad_files")
    marker = tmp_path_factory.mktemp("marker") / "ran"
    cases = {case.name: case for case in build(folder, marker)}
    given = json.dumps([(case.name, case.path) for case in cases.values()])
    done = subprocess.run([sys.executable, "-c", READ_ALL], input=given, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {"cases": cases, "marker": marker, **json.loads(done.stdout)}


def test_there_are_many():
    assert len(NAMES) == len(set(NAMES)) >= 140


@pytest.mark.parametrize("name", NAMES)
def test_refused_with_one_clear_line(name, outcome):
    case: Case = outcome["cases"][name]
    said, seconds, _ = outcome["results"][name]
    assert said is not None, "the file was read"
    line = said.split("\n")[0]
    assert line.startswith(f"{case.path}: "), line
    assert all(fragment in line.removeprefix(case.path) for fragment in case.says), (line, case.says)
    assert len(line) < 400 + len(case.path) and line.isprintable()
    assert seconds < SECONDS


def test_nothing_ran_and_memory_stayed_small(outcome):
    assert not outcome["marker"].exists()  # and Python's audit events tell of no call either
    peaks = {name: round(peak) for name, (_, _, peak) in outcome["results"].items()}
    assert max(peaks.values()) < MEGABYTES, peaks
    assert outcome["ran"] == [] and not outcome["torch"]


def test_the_marker_would_show_a_run(tmp_path):
    """The hostile files are truly hostile: Python's own pickle module runs the same bytes."""
    import pickle

    pickle.loads(hostile(f"touch {tmp_path}/ran")["bare_pickle.pt"][0])
    assert (tmp_path / "ran").exists()

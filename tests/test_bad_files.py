"""Every bad weight file is refused in time, within memory, with one line that names the file and the key, and nothing
runs: by the reader, and by `maskgil convert`, which exits with 2 and leaves no folder.
"""

import json
import pathlib
import subprocess
import sys

import pytest
from helpers import bad_networks
from helpers.bad_files import Case, build, hostile

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc"), pytest.mark.slow]
ROOT = pathlib.Path(__file__).parent.parent
SECONDS, MEGABYTES = 5.0, 200

# One process reads all of them: starting one per file would take longer than the reading.
READ_ALL = """
import contextlib, io, json, pathlib, sys, time
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.convert.readers.detect import read

def memory(field):  # MB; getrusage would also count the process that started this one
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024

ran = []
watched = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "exec")
sys.addaudithook(lambda event, _: ran.append(event) if event in watched else None)

def measured(refuse, path):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    start, began = memory("VmRSS"), time.process_time()
    try:
        said = refuse(path)
    except BaseException as error:
        said = f"CRASH {type(error).__name__}: {error}"
    return [said, time.process_time() - began, memory("VmHWM") - start]

def by_reading(path):
    try:
        read(path, verify=True).verify(finite=True)
    except BadWeightFile as error:
        return str(error)

def by_converting(path):
    out, said = pathlib.Path(given["folder"]) / "out", io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["convert", path, str(out)])
    left = [p.name for p in out.parent.iterdir()]
    return said.getvalue() if (code, left) == (2, []) else f"exit code {code}, left {left}: {said.getvalue()}"

given = json.load(sys.stdin)
results = {name: measured(by_reading, path) for name, path in given["files"]}
ran_reading, torch = list(ran), "torch" in sys.modules

from maskgil_jax import cli
import maskgil_jax.convert.main, maskgil_jax.training.metrics_log, maskgil_jax.checkpoints.train_state
by_converting(given["files"][0][1])  # what is imported on the first call is not the file's doing
by_converting(given["networks"][0][1])
ran.clear()
conversions = {name: measured(by_converting, path) for name, path in given["files"] + given["networks"]}
ran = [event for event in ran if event != "exec"]  # jax and flax make small functions of their own while they trace
json.dump(dict(results=results, conversions=conversions, ran=ran_reading + ran, torch=torch), sys.stdout)
"""

NAMES = [case.name for case in build(None, pathlib.Path("marker"))]
NETWORKS = [case.name for case in bad_networks.build(None, pathlib.Path("marker"))]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> dict:
    folder, out_folder = tmp_path_factory.mktemp("bad_files"), tmp_path_factory.mktemp("out")
    marker = tmp_path_factory.mktemp("marker") / "ran"
    files = {case.name: case for case in build(folder, marker)}
    networks = {case.name: case for case in bad_networks.build(tmp_path_factory.mktemp("networks"), marker)}
    lists = {"files": files, "networks": networks}
    given = {name: [(case.name, case.path) for case in cases.values()] for name, cases in lists.items()}
    given = json.dumps(given | {"folder": str(out_folder)})
    done = subprocess.run([sys.executable, "-c", READ_ALL], input=given, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return {"cases": files | networks, "marker": marker, **json.loads(done.stdout)}


def test_bad_file_cases_are_distinct_and_many():
    assert len(NAMES) == len(set(NAMES)) >= 140
    assert len(NETWORKS) == len(set(NETWORKS)) >= 25 and not set(NAMES) & set(NETWORKS)


@pytest.mark.parametrize("name", NAMES)
def test_read_refuses_bad_file_with_one_line(name, outcome):
    case: Case = outcome["cases"][name]
    said, seconds, _ = outcome["results"][name]
    assert said is not None, "the file was read"
    line = said.split("\n")[0]
    assert line.startswith(f"{case.path}: "), line
    assert all(fragment in line.removeprefix(case.path) for fragment in case.says), (line, case.says)
    assert len(line) < 400 + len(case.path) and line.isprintable()
    assert seconds < SECONDS


@pytest.mark.parametrize("name", [*NAMES, *NETWORKS])
def test_convert_refuses_bad_file_with_one_line_and_no_folder(name, outcome):
    case: Case = outcome["cases"][name]
    said, seconds, _ = outcome["conversions"][name]
    place = str(pathlib.Path(case.path).parent) if name in NETWORKS else case.path  # some name a sidecar file
    assert said.startswith(f"error: {place}") and said.count("\n") == 1 and said[:-1].isprintable(), said
    if name in NETWORKS:
        assert all(fragment in said for fragment in case.says), (said, case.says)
    assert seconds < SECONDS


def test_bad_files_run_nothing_and_need_little_memory(outcome):
    assert not outcome["marker"].exists()  # and Python's audit events tell of no call either
    for way in ("results", "conversions"):
        peaks = {name: round(peak) for name, (_, _, peak) in outcome[way].items()}
        assert max(peaks.values()) < MEGABYTES, peaks
    assert outcome["ran"] == [] and not outcome["torch"]


def test_hostile_pickle_runs_under_pythons_pickle(tmp_path):
    """The hostile files are truly hostile: Python's own pickle module runs the same bytes."""
    import pickle

    pickle.loads(hostile(f"touch {tmp_path}/ran")["bare_pickle.pt"][0])
    assert (tmp_path / "ran").exists()

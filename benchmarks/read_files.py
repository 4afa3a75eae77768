"""How long reading a checkpoint takes beside reading the disk, and how much memory converting a large one needs.

python -m benchmarks.read_files              a .pt of 1 GiB: the raw file, our reader with checksums, torch.load
python -m benchmarks.read_files --convert    MaskGIL's XXL in float32 (5.6 GB): `maskgil convert`

The second needs 11.3 GB of disk. torch.load runs if torch is installed.

Every reading starts with the file out of the system's cache, so the disk is part of each. Linux only.
"""

import argparse
import gzip
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from tests.helpers.file_assembler import write_torch_zip

LISTINGS = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "convert" / "listings.json.gz"
MATRICES, SIDE = 64, 2048  # of 16 MiB each
# name -> (what is imported before the clock starts, what is timed)
READINGS = {
    "raw file": (
        "buffer = bytearray(8 << 20)",
        "with open(path, 'rb', buffering=0) as file:\n    while file.readinto(buffer): pass",
    ),
    "our reader, CRC-32 compared": ("from maskgil_jax.convert.readers.detect import read", "read(path, verify=True)"),
    "torch.load(weights_only=True)": ("import torch", "torch.load(path, weights_only=True)"),
}
CONVERTING = ("from maskgil_jax.convert.main import convert", "convert(path, path + '.weights')")
# In a process of its own. VmHWM and not getrusage, which would also count the process that started this one.
TIMED = """
import os, pathlib, sys, time
path = sys.argv[1]
{before}
file = os.open(path, os.O_RDONLY)
os.fsync(file)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
status = lambda field: int(pathlib.Path("/proc/self/status").read_text().split(field + ":")[1].split()[0])
start, began = status("VmRSS"), time.perf_counter()
{timed}
print(time.perf_counter() - began, start, status("VmHWM"))
"""


def run(before: str, timed: str, path: pathlib.Path) -> tuple[float, float, float]:
    """(seconds, resident MiB before, highest resident MiB)."""
    code = TIMED.format(before=before, timed=timed)
    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, check=True)
    seconds, start, highest = map(float, done.stdout.split()[-3:])
    return seconds, start / 1024, highest / 1024


def write(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A float32 checkpoint of these shapes, as MaskGIL's trainer saves it; the values are noise."""
    noise = np.random.default_rng(0).normal(0, 0.02, max(np.prod(shape) for shape in shapes.values())).astype(np.float32)
    write_torch_zip(
        path, ((name, noise[: np.prod(shape)].reshape(shape)) for name, shape in shapes.items()), "model_state_dict"
    )


def reading(folder: pathlib.Path, repeats: int) -> None:
    """Rounds of all ways after one another, so that a busy disk is busy for all of them; the fastest of each counts."""
    path = folder / "gib.pt"
    write(path, {f"layers.{i}.weight": (SIDE, SIDE) for i in range(MATRICES)})
    ways = {name: parts for name, parts in READINGS.items() if "torch." not in name or importlib.util.find_spec("torch")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, parts in ways.items():
            seconds[name].append(run(*parts, path)[0])
    size, raw = path.stat().st_size, min(seconds["raw file"])
    print(f"{size / 2**30:.2f} GiB, fastest of {repeats}\n\n| way | seconds | GB/s | of the raw file |\n|---|---|---|---|")
    for name, all_seconds in seconds.items():
        best = min(all_seconds)
        print(f"| {name} | {best:.2f} | {size / best / 1e9:.2f} | {best / raw:.2f} |")


def converting(folder: pathlib.Path) -> None:
    """Converts a whole XXL once."""
    listed = json.loads(gzip.decompress(LISTINGS.read_bytes()))["maskgil_gpt_xxl"]["tensors"]
    shapes = {name: tuple(size for size in about if type(size) is int) for name, about in listed.items()}
    size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if free < 2.1 * size:
        sys.exit(f"{folder}: {free / 1e9:.1f} GB are free, {2.1 * size / 1e9:.1f} GB are needed: --folder elsewhere")
    write(folder / "xxl.pth", shapes)
    seconds, start, highest = run(*CONVERTING, folder / "xxl.pth")
    files = sorted(path.name for path in (folder / "xxl.pth.weights").iterdir())
    print(f"{size / 1e9:.2f} GB in {len(shapes)} tensors, converted in {seconds:.0f} s into {', '.join(files)}")
    print(f"resident: {start:.0f} MiB before, {highest:.0f} MiB at most, which is {highest * 2**20 / size:.2f} of the file")


def main() -> None:
    """Everything is written into a temporary folder and deleted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convert", action="store_true", help="convert a file of 5.6 GB instead")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of reading (default: 3)")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.convert:
            converting(pathlib.Path(folder))
        else:
            reading(pathlib.Path(folder), args.repeats)


if __name__ == "__main__":
    main()

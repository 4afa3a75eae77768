"""Time to the first picture in a second process: the Python API against `maskgil sample`, each in processes of its own.

    python -m benchmarks.first_picture --weights demo --repeats 3

One process of each kind fills the compilation cache, of a folder of its own, and is not counted. The ratio of the
medians is printed, and compared with 1.3.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

LIMIT = 1.3
API = """
import maskgil_jax
pipeline = maskgil_jax.load({weights!r})
image, = pipeline(0, seed=1, output="pil")
image.save({out!r} + "/first.png")
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """How long a process takes from start to end. Raises `CalledProcessError` if it fails."""
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; returns 0 if the ratio is at most `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="demo", help="pipeline folder, shipped name or hub address")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind, taken in turns")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": os.path.join(folder, "xla")}
        sample = ["-m", "maskgil_jax", "sample", "--weights", args.weights, "--labels", "0", "--per-class", "1", "--seed", "1"]
        sample += ["--overwrite", "--no-contact-sheet", "--out", os.path.join(folder, "samples")]
        forms = {
            "api": [sys.executable, "-c", API.format(weights=args.weights, out=folder)],
            "command": [sys.executable, *sample],
        }
        times: dict[str, list[float]] = {name: [] for name in forms}
        first = {name: seconds(command, environment) for name, command in forms.items()}
        for repeat in range(args.repeats):
            for name, command in forms.items():
                # A finished job draws nothing: each run of the command has a folder of its own.
                words = [f"{word}{repeat}" if word.endswith("samples") else word for word in command]
                times[name].append(seconds(words, environment))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name in forms:
        print(f"{name}: first process {first[name]:.1f} s, later ones {medians[name]:.1f} s")
    ratio = medians["api"] / medians["command"]
    print(f"ratio {ratio:.2f}, at most {LIMIT}: {'yes' if ratio <= LIMIT else 'no'}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

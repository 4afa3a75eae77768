"""Evaluation: peak memory and speed at two numbers of images, each in a process of its own.

Memory must not grow with them.

python -m benchmarks.evaluate [--counts 2000,20000] [--side 256] [--features demo]

The images are drawn while they are measured, so what grows is what evaluation keeps: 16 bytes an image to find
duplicates and, with --neighbours, the features for precision and recall.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np


def synthetic(count: int, side: int, seed: int):
    """A set of random images, each batch made when it is asked for."""
    from maskgil_jax.evaluation.images import ImageSet

    def batches(rows: int):
        rng = np.random.default_rng(seed)
        for start in range(0, count, rows):
            yield rng.integers(0, 256, (min(rows, count - start), side, side, 3), np.uint8)

    return ImageSet(f"{count} random images", count, (side, side), batches)


def measure(count: int, side: int, features: str, batch_size: int, neighbours: bool) -> dict:
    """Figures of one process."""
    from maskgil_jax.evaluation.features import load_feature_extractor
    from maskgil_jax.evaluation.reference import reference_of
    from maskgil_jax.evaluation.run import evaluate, needs

    metrics = ("fid", "precision_recall") if neighbours else ("fid",)
    extractor, (moments, keep) = load_feature_extractor(features), needs(metrics)
    small = synthetic(max(2 * batch_size, 64), side, 1)
    reference = reference_of(small, extractor, moments=moments, keep=keep, batch_size=batch_size)  # compiles, too
    began = time.perf_counter()
    result = evaluate(synthetic(count, side, 2), reference, extractor, metrics, batch_size=batch_size)
    seconds = time.perf_counter() - began
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "images": count,
        "side": side,
        "pixels_mib": round(count * side * side * 3 / 2**20),
        "peak_rss_mib": round(peak / 2**20),
        "seconds": round(seconds, 1),
        "images_per_s": round(count / seconds, 1),
        "fid": round(result["figures"]["fid"], 4),
    }


def main() -> None:
    """Runs each count in a fresh process and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="2000,20000", help="comma-separated (default: 2000,20000)")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--features", default="demo")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--neighbours", action="store_true", help="also precision and recall, whose features are kept")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.side, args.features, args.batch_size, args.neighbours)))
        return
    rows = []
    for count in map(int, args.counts.split(",")):
        command = [sys.executable, "-m", "benchmarks.evaluate", f"--one={count}", f"--side={args.side}"]
        command += [f"--features={args.features}", f"--batch-size={args.batch_size}", *["--neighbours"] * args.neighbours]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    from benchmarks.measure import report

    report(rows, args.json)


if __name__ == "__main__":
    main()

"""What feeds a training, per CPU core, against what B on a v5e-256 eats: stored codes, images,
and the two halves of encoding.

python -m benchmarks.input_pipeline [--parts codes,images,encode,tokenizer] [--seconds 10]

Records and images are made up in ImageNet's sizes and read through the real loader by one process, so the disk is not
measured. Rates are per CPU-second of that process, all its threads. What is eaten follows from `maskgil plan`: images a
chip, the estimated time of a step, and the MFU that this time implies; "at peak" is a chip that would reach its
published peak.
"""

import argparse
import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.measure import timed
from maskgil_jax.config import LoaderConfig
from maskgil_jax.data import code_format
from maskgil_jax.data.code_store import CodeStore, code_batches, encode_dataset
from maskgil_jax.data.images import image_batches
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.files.atomic import write_json

GRID, CODEBOOK, SIDE = (16, 16), 16384, 256
HOST_BATCH, HOSTS = 256, 64  # rows of one machine in a batch of 16384 on a v5e-256 of 64 machines
RECORDS = 8192


def write_store(folder: pathlib.Path, crops: int) -> CodeStore:
    """A store of random codes, each image with `crops` crops and their mirror images."""
    folder.mkdir()
    rng, variants = np.random.default_rng(0), [[crop, mirrored] for mirrored in range(2) for crop in range(crops)]
    records = [
        code_format.pack(rng.integers(0, CODEBOOK, (len(variants), *GRID)), i % 1000, f"n{i:08d}.JPEG", variants, "uint16")
        for i in range(RECORDS)
    ]
    settings = dict(format=code_format.FORMAT, tokenizer_hash="", grid=GRID, codebook_size=CODEBOOK, dtype="uint16")
    settings |= dict(image_size=SIDE, source="made up", source_fingerprint="", num_images=RECORDS, shard_size=4096)
    settings |= dict(class_names=list(map(str, range(1000))), crops="ten_crop" if crops > 1 else "center", variants=variants)
    parts = [records[start : start + 4096] for start in range(0, RECORDS, 4096)]
    shards = [code_format.write_shard(folder / code_format.shard_name(n), part) for n, part in enumerate(parts)]
    write_json(folder / code_format.MANIFEST, {**settings, "shards": shards})
    return CodeStore(folder)


def write_images(folder: pathlib.Path, count: int = 64) -> ImageFolder:
    """JPEG files of 500 x 375 and about 110 kB, ImageNet's averages."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (25, 33, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        fine = np.asarray(coarse, np.int16) + rng.integers(-16, 17, (375, 500, 3))
        (folder / str(i % 8)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder / str(i % 8) / f"{i}.jpg", quality=92)
    return ImageFolder(folder)


def rate(batches: Iterator[dict], seconds: float) -> dict:
    """Reads for `seconds` after two batches that warm up."""

    def read() -> int:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            count += rows
        return count

    with contextlib.closing(batches):
        rows = len(next(batches)["label"])
        next(batches)
        count, wall, used = timed(read)
    return {"images": count, "cpu_s": used, "wall_s": wall}


def measure_codes(folder: pathlib.Path, seconds: float, crops: int) -> dict:
    """What `maskgil train` does on one of 64 machines."""
    store = write_store(folder / f"codes{crops}", crops)
    return rate(code_batches(store, LoaderConfig(HOST_BATCH * HOSTS, rows=tuple(range(HOST_BATCH, 2 * HOST_BATCH)))), seconds)


def measure_images(folder: pathlib.Path, seconds: float) -> dict:
    """Decoding, cropping, mirroring: training without a store (the tokenizer then runs inside the step)."""
    source = write_images(folder / "images")
    return rate(image_batches(source, LoaderConfig(16), size=SIDE, flip=True), seconds)


def measure_encode(folder: pathlib.Path, ten_crop: bool) -> dict:
    """`maskgil encode` without its tokenizer: decoding, crops, records, writing."""
    source = write_images(folder / f"for_codes{ten_crop}")
    options = dict(tokenizer_hash="", grid=GRID, codebook_size=CODEBOOK, size=SIDE, batch_size=32, progress=False)
    options |= dict(flip=not ten_crop, ten_crop=ten_crop)
    codes = np.zeros((32, *GRID), np.int32)
    _, wall, used = timed(lambda: encode_dataset(lambda images: codes, source, folder / f"encoded{ten_crop}", **options))
    return {"images": len(source), "cpu_s": used, "wall_s": wall}


def measure_tokenizer() -> dict:
    """VQ-16's encoder on this machine's device, one image at a time; on a CPU this is no input pipeline."""
    import jax

    from maskgil_jax.config import VQ_PRESETS
    from maskgil_jax.networks import create
    from maskgil_jax.tokenizers.images import encoder_of

    encode, image = encoder_of(create(VQ_PRESETS["VQ-16"], jax.random.key(0))), np.zeros((1, SIDE, SIDE, 3), np.uint8)
    encode(image)
    _, wall, used = timed(lambda: encode(image))
    return {"images": 1, "cpu_s": used, "wall_s": wall}


PARTS: dict[str, list[tuple[str, Callable]]] = {
    "codes": [
        ("codes, centre and mirror", lambda folder, args: measure_codes(folder, args.seconds, 1)),
        ("codes, ten crops", lambda folder, args: measure_codes(folder, args.seconds, 5)),
    ],
    "images": [("images: JPEG, crop, mirror", lambda folder, args: measure_images(folder, args.seconds))],
    "encode": [
        ("encode, centre and mirror, without the tokenizer", lambda folder, args: measure_encode(folder, False)),
        ("encode, ten crops, without the tokenizer", lambda folder, args: measure_encode(folder, True)),
    ],
    "tokenizer": [("encode, VQ-16 alone", lambda folder, args: measure_tokenizer())],
}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated (default: {','.join(PARTS)})")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each reading (default: 10)")
    parser.add_argument("--images-a-chip", type=int, default=64, help="of the planned step (default: 64)")
    parser.add_argument("--step-ms", type=float, default=144.0, help="estimated time, docs/results/tpu_plans.md (default: 144)")
    parser.add_argument("--mfu", type=float, default=0.357, help="that this time implies (default: 0.357)")
    parser.add_argument("--chips", type=int, default=4, help="that one machine feeds (default: 4, as in a v5e-256 of 64)")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    eaten = args.chips * args.images_a_chip / (args.step_ms / 1000)
    peak, tokens, rows = eaten / args.mfu, GRID[0] * GRID[1], []
    print(f"{args.chips} chips x {args.images_a_chip} images in {args.step_ms:g} ms: a machine eats {eaten:,.0f} images/s")
    print(f"({eaten * tokens:,.0f} codes/s); at peak (MFU {args.mfu:.1%} -> 100%) {peak:,.0f} images/s\n")
    print("| part | images/s a core | codes/s a core | cores a machine needs | at peak |\n" + "|---" * 5 + "|")
    with tempfile.TemporaryDirectory(prefix="maskgil_input_") as folder:
        for name, part in [found for key in args.parts.split(",") for found in PARTS[key]]:
            result = part(pathlib.Path(folder), args)
            speed = result["images"] / result["cpu_s"]
            rows.append({"part": name, **result, "images_per_core_second": speed})
            needs = f"{eaten / speed:.2f} | {peak / speed:.2f}"
            print(f"| {name} | {speed:,.1f} | {speed * tokens:,.0f} | {needs} |", flush=True)
    if args.json:
        write_json(args.json, {"eaten": eaten, "peak": peak, "cores_here": os.cpu_count(), "rows": rows})


if __name__ == "__main__":
    main()

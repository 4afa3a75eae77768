"""Compares the images of the shipped weights with recorded ones, byte for byte: plain, guided, hybrid, edited,
jobs, causal.

    python -m benchmarks.same_images record tests/golden/same_images.npz
    python -m benchmarks.same_images compare tests/golden/same_images.npz

Uses public names and commands alone, so that a record made before a refactoring can be compared after it. Rounding
differs between processors and XLA versions: record and compare on one machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pathlib
import tempfile

import numpy as np

LABELS = ["hearts", "country flags", "smiling", "fruit"]


def images() -> dict[str, np.ndarray]:
    """Every image that is compared, by the name of its case."""
    import jax
    import jax.numpy as jnp

    import maskgil_jax
    from maskgil_jax import CausalConfig, ClassCondition, DecodeConfig

    made, pipeline = {}, maskgil_jax.load("demo")
    made["plain"] = pipeline(LABELS, seed=1)
    made["unguided"] = pipeline(LABELS, seed=2, cfg=DecodeConfig(guidance=1.0))
    made["batches"] = pipeline(LABELS, seed=1, batch_size=3)
    made["single"] = pipeline(7, seed=5)
    made["canvas"] = pipeline(LABELS[:2], seed=3, grid=(8, 12))
    made["remask"] = pipeline(
        LABELS[:2], seed=3, cfg=DecodeConfig(remask="cap", remask_pick="confidence", choice_temperature=0.0)
    )
    for preset in ("paper", "release", "maskgit", "halton", "fast"):
        made[f"preset {preset}"] = pipeline(LABELS[:2], seed=4, cfg=preset)
    for order in ("random", "raster", "halton"):
        made[f"order {order}"] = pipeline(LABELS[:2], seed=6, cfg=DecodeConfig(order=order, top_k=50, top_p=0.9))
    watched: list[np.ndarray] = []
    pipeline(LABELS[:2], seed=1, on_step=lambda _, tokens_bl: watched.append(np.asarray(tokens_bl)))
    made["steps"] = np.stack(watched)

    hybrid = maskgil_jax.load("demo", ar="demo_ar")
    made["hybrid"] = hybrid(LABELS, seed=1, ar_ratio=0.25)
    causal, condition = maskgil_jax.load_generator("demo_ar"), ClassCondition(jnp.arange(3, dtype=jnp.int32))
    for name, cfg in (("causal", CausalConfig()), ("causal top-k", CausalConfig(top_k=40, cfg_interval=10))):
        made[name] = np.asarray(maskgil_jax.decode_causal(causal, condition, jax.random.key(1), cfg))

    hole_hw = np.zeros((64, 64), bool)
    hole_hw[16:40, 24:56] = True
    made["inpaint"] = pipeline.inpaint(made["plain"], hole_hw, LABELS, seed=1)
    made["inpaint without class"] = pipeline.inpaint(made["plain"][:2], hole_hw, None, seed=1, batch_size=1)
    made["edit_box"] = pipeline.edit_box(made["plain"][:2], (8, 8, 40, 40), "hearts", seed=2)
    made["vary"] = pipeline.vary(made["plain"][:2], LABELS[:2], seed=2)
    made["interpolate"] = pipeline.interpolate("hearts", "fruit", seed=3)
    made["outpaint"] = pipeline.outpaint(made["plain"][:1], (8, 14), "hearts", seed=3)
    made["trajectory"] = pipeline.trajectory(LABELS[:2], seed=4)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for kind in ("png", "webp", "npz", "array_record"):
            made |= job(pathlib.Path(folder, kind), kind)
    return made


def job(out: pathlib.Path, kind: str) -> dict[str, np.ndarray]:
    """The samples of `maskgil sample` in one format: an npz's arrays, elsewhere the bytes of every sample file."""
    from maskgil_jax.cli import main

    main(
        [
            "sample",
            "--labels",
            "hearts,fruit,birds",
            "--per-class",
            "2",
            "--batch-size",
            "4",
            "--format",
            kind,
            "--out",
            str(out),
        ]
    )
    if kind == "npz":
        with np.load(out / "samples.npz", allow_pickle=False) as arrays:
            return {f"job {kind} {name}": arrays[name] for name in ("arr_0", "arr_1")}
    files = sorted(path for path in out.iterdir() if path.name != "samples.json" and "grid" not in path.name)
    return {f"job {kind} {path.name}": np.frombuffer(path.read_bytes(), np.uint8) for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=pathlib.Path)
    args = parser.parse_args()
    made = images()
    if args.action == "record":
        args.file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(args.file, **made)
        print(f"{len(made)} cases, {sum(a.nbytes for a in made.values())} bytes in {args.file}")
        return 0
    with np.load(args.file, allow_pickle=False) as arrays:
        recorded = {name: arrays[name] for name in arrays.files}
    total, differing = 0, {name: -1 for name in recorded.keys() ^ made.keys()}
    for name in sorted(recorded.keys() & made.keys()):
        before, after = recorded[name], made[name]
        total += before.nbytes
        count = int((before != after).sum()) if before.shape == after.shape else -1
        if count:
            differing[name] = count
    for name, count in sorted(differing.items()):
        print(f"{name}: " + ("of another shape, or on one side alone" if count < 0 else f"{count} values differ"))
    print(f"{len(recorded)} cases, {total} bytes: {len(differing)} cases differ")
    return bool(differing)


if __name__ == "__main__":
    raise SystemExit(main())

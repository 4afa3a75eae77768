"""What padding to a canvas of one length costs: FLOPs of the generator on padding, for photos and all buckets.

python -m benchmarks.buckets [--sides 256,512] [--prefix 120,128] [--preset XL] [--json FILE]

Computed, not measured: the matrix products of the layers, attention included. A square centre crop stands beside the
buckets.
"""

import argparse

import numpy as np

from benchmarks.measure import table
from maskgil_jax.config import LLAMA_PRESETS, LlamaConfig
from maskgil_jax.data.buckets import area_kept, buckets, canvas_length, nearest_bucket
from maskgil_jax.files.atomic import write_json

DOWNSAMPLING = 16
# Shares of aspect ratios (height, width) of a collection of photos.
PHOTOS = {
    (1, 1): 0.40,
    (3, 4): 0.15,
    (4, 3): 0.15,
    (2, 3): 0.115,
    (3, 2): 0.115,
    (9, 16): 0.035,
    (16, 9): 0.035,
}


def layer_flops(cfg: LlamaConfig, positions) -> np.ndarray:
    """FLOPs of the matrix products of all layers, two a multiply-add, for one sequence of `positions`."""
    positions = np.asarray(positions, np.float64)
    kv_width = cfg.width // cfg.heads * (cfg.kv_heads or cfg.heads)
    weights = 2 * cfg.width * (cfg.width + kv_width) + 3 * cfg.width * cfg.hidden
    return cfg.depth * (2 * weights * positions + 4 * cfg.width * positions**2)


def wasted(cfg: LlamaConfig, tokens, shares, side: int, prefix: int) -> float:
    """Fraction of the FLOPs of a padded canvas that padding takes, for images of `tokens` tokens in `shares`."""
    full = layer_flops(cfg, canvas_length(side, DOWNSAMPLING) + prefix)
    return float(1 - np.dot(shares, layer_flops(cfg, np.asarray(tokens) + prefix)) / full)


def rows(cfg: LlamaConfig, side: int, prefixes: list[int]) -> list[dict]:
    """One row for photos and one for buckets of equal share."""
    sizes = buckets(side)
    chosen = [nearest_bucket((1000 * h, 1000 * w), sizes) for h, w in PHOTOS]
    found = []
    for name, taken, shares in (
        ("photos", chosen, list(PHOTOS.values())),
        ("all buckets alike", sizes, [1 / len(sizes)] * len(sizes)),
    ):
        tokens = [h * w // DOWNSAMPLING**2 for h, w in taken]
        row = {"side": side, "images": name, "buckets": len(sizes), "mean tokens": round(float(np.dot(shares, tokens)), 1)}
        if taken is chosen:
            kept = [area_kept(size, bucket) for size, bucket in zip(PHOTOS, chosen)]
            square = [area_kept(size, (side, side)) for size in PHOTOS]
            row |= {"area kept": f"{np.dot(shares, kept):.1%}", "by a square crop": f"{np.dot(shares, square):.1%}"}
        else:
            row |= {"area kept": "", "by a square crop": ""}
        row |= {f"FLOPs wasted, prefix {p}": f"{wasted(cfg, tokens, shares, side, p):.1%}" for p in prefixes}
        found.append(row)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="256,512", help="comma-separated (default: 256,512)")
    parser.add_argument("--prefix", default="120,128", help="positions of the text, comma-separated (default: 120,128)")
    parser.add_argument("--preset", default="XL", help="of the generator (default: XL)")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    cfg = LLAMA_PRESETS[args.preset]
    prefixes = [int(prefix) for prefix in args.prefix.split(",")]
    found = [row for side in args.sides.split(",") for row in rows(cfg, int(side), prefixes)]
    print(table(found))
    if args.json:
        write_json(args.json, {"preset": args.preset, "rows": found})


if __name__ == "__main__":
    main()

"""How far the scores of the emoji scenes can be trusted: accuracy of the detector on true scenes, whole and damaged.

python -m benchmarks.emoji_scenes [--per-task 100] [--split test] [--tokenizer demo] [--thresholds 0.5,0.6,0.7,0.8]
[--json FILE]

Rows: scenes of the prompts as they are; scenes of other prompts, which is chance; and scenes through the tokenizer,
through noise, blurred, and shifted by one pixel. The threshold of the correlation is chosen by this table.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

from benchmarks.measure import table
from maskgil_jax.checkpoints.weights import load_tokenizer
from maskgil_jax.evaluation.benchmarks.emoji_scenes import THRESHOLD, reference_scores, scene_prompts
from maskgil_jax.files.atomic import write_json


def noise(images_bhwc: np.ndarray) -> np.ndarray:
    """Normal noise of standard deviation 25."""
    noisy = images_bhwc + np.random.default_rng(0).normal(0, 25, images_bhwc.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def blur(images_bhwc: np.ndarray) -> np.ndarray:
    """A Gaussian filter of 1.5 pixels."""
    return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))) for image in images_bhwc])


def shift(images_bhwc: np.ndarray) -> np.ndarray:
    """One pixel down and to the right: half a pixel at the resolution of the detector."""
    shifted = np.full_like(images_bhwc, 255)
    shifted[:, 1:, 1:] = images_bhwc[:, :-1, :-1]
    return shifted


def reconstruction(path: str):
    """uint8 images -> the same through a tokenizer."""
    tokenizer = load_tokenizer(path)

    @jax.jit
    def through(tokenizer, images_bhwc):
        return tokenizer.decode(tokenizer.encode(images_bhwc.astype(jnp.float32) / 127.5 - 1))

    def transform(images_bhwc: np.ndarray) -> np.ndarray:
        decoded = np.asarray(through(tokenizer, images_bhwc))
        return np.clip(np.round((decoded + 1) * 127.5), 0, 255).astype(np.uint8)

    return transform


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-task", type=int, default=100, help="prompts of each task (default: 100)")
    parser.add_argument("--split", default="test", help="combinations: test or train (default: test)")
    parser.add_argument("--tokenizer", default="demo", help="name or folder (default: demo)")
    parser.add_argument("--thresholds", default=str(THRESHOLD), help=f"of the correlation (default: {THRESHOLD})")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    prompts = scene_prompts(args.per_task, split=args.split)
    transforms = {f"tokenizer {args.tokenizer}": reconstruction(args.tokenizer), "noise": noise, "blur": blur, "shift": shift}
    rows = []
    for threshold in (float(value) for value in args.thresholds.split(",")):
        scores: dict[str, dict] = {}
        for name, transform in transforms.items():
            found = reference_scores(prompts, transform, threshold)
            scores |= {f"true scenes, {name}" if key.endswith("transformed") else key: row for key, row in found.items()}
        rows += [
            {"threshold": threshold, "images": name} | {k: round(v, 3) for k, v in row.items()} for name, row in scores.items()
        ]
    print(table(rows))
    if args.json:
        write_json(args.json, {"prompts": len(prompts), "split": args.split, "rows": rows})


if __name__ == "__main__":
    main()

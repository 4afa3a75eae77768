"""Frechet distances that must come in this order, on the built-in images with the shipped weights and classifier:
real halves < real and reconstructed < real and generated < real and noise.

python -m benchmarks.distances [--count 1000]
"""

import argparse

import jax
import numpy as np


def distances(count: int = 1000, seed: int = 0, batch_size: int = 64) -> dict[str, float]:
    """{set: Frechet distance to the same `count` real images} of four sets of `count` images each."""
    from maskgil_jax.data.images import open_images
    from maskgil_jax.evaluation.features import load_feature_extractor
    from maskgil_jax.evaluation.generated import generated_set, labels_like
    from maskgil_jax.evaluation.images import array_set
    from maskgil_jax.evaluation.reference import reference_of
    from maskgil_jax.evaluation.run import evaluate
    from maskgil_jax.pipelines.pipeline import load
    from maskgil_jax.tokenizers.images import reconstruct

    source, pipeline, extractor = open_images("emoji"), load("demo"), load_feature_extractor("demo")
    if not 2 <= 2 * count <= len(source):
        raise SystemExit(f"--count: from 1 to {len(source) // 2}, there are {len(source)} images")
    # Two halves of a shuffled order: neighbours in the set are drawings of one emoji in several styles.
    order = np.random.default_rng(seed).permutation(len(source))
    first, second = ([source[int(i)] for i in order[start : start + count]] for start in (0, count))
    real, other = (np.stack([record["image"] for record in half]) for half in (first, second))
    padded = np.resize(other, (-(-count // batch_size) * batch_size, *other.shape[1:]))
    copies = [jax.device_get(reconstruct(pipeline.tokenizer, rows)) for rows in np.split(padded, len(padded) // batch_size)]
    labels = labels_like(np.asarray([record["label"] for record in first]), count, seed)
    sets = {
        "the other half": array_set(other),
        "reconstructed": array_set(np.concatenate(copies)[:count]),
        "generated": generated_set(pipeline, labels, seed=seed, batch_size=batch_size),
        "noise": array_set(np.random.default_rng(seed).integers(0, 256, real.shape, np.uint8)),
    }
    reference = reference_of(array_set(real, "real"), extractor, moments=("features",), keep=False, batch_size=batch_size)
    return {
        name: evaluate(images, reference, extractor, ("fid",), batch_size=batch_size)["figures"]["fid"]
        for name, images in sets.items()
    }


def main() -> None:
    """Prints the four distances."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="images of each set (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"Frechet distance of {args.count} images to {args.count} real ones, features of the shipped classifier\n")
    print("| set | distance |\n|---|---|")
    for name, value in distances(args.count, args.seed).items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()

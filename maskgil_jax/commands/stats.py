"""maskgil stats: computes the reference statistics of an image set once, for many evaluations."""

from __future__ import annotations

from maskgil_jax.commands.evaluate import add_source_options, batch_size, image_count, source_options
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("stats", run, "Compute the stats file of an image set, for use as the reference of evaluations.")
    sub.add_argument("source", help="images: a folder, an .npz (arr_0), an .array_record, emoji or tfds:NAME")
    sub.add_argument("out", help="the .npz to write")
    sub.add_argument("--features", help="weights folder of the feature network: a converted FID Inception, or demo")
    sub.add_argument("--protocol", help="how images enter the FID Inception: adm (default), pytorch-fid or torch-fidelity")
    sub.add_argument(
        "--features-too", action="store_true", help="also store all features, which precision, recall and KID need"
    )
    sub.add_argument("--count", type=image_count, help="use the first COUNT images only")
    sub.add_argument("--batch-size", type=batch_size, default=64, help="images per batch (default: 64)")
    add_source_options(sub)


def run(args, rest) -> None:
    """maskgil stats"""
    from maskgil_jax.config import require
    from maskgil_jax.evaluation.features import load_feature_extractor
    from maskgil_jax.evaluation.images import open_image_set
    from maskgil_jax.evaluation.reference import write_stats

    require(args.out.endswith(".npz"), f"{args.out}: the name of a stats file ends in .npz")
    prepare_jax()
    extractor = load_feature_extractor(args.features, args.protocol)
    images = open_image_set(args.source, image_size=args.image_size, count=args.count, **source_options(args))
    made = write_stats(images, extractor, args.out, keep=args.features_too, batch_size=args.batch_size)
    for text in [*(f"warning: {w}" for w in made.warnings), *(f"note: {n}" for n in made.notes)]:
        print(text)
    print(
        f"stats: {args.out} ({made.count} images of {images.size[1]}x{images.size[0]}, hash {made.hash}, "
        f"features of {extractor.name} {extractor.hash}, protocol {extractor.protocol})"
    )

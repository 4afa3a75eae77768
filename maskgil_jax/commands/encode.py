"""maskgil encode: encodes a data set once into a code store."""

from __future__ import annotations

import argparse

from maskgil_jax.commands.parser import at_least, path
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("encode", run, "Encode a data set into a code store, for training. An interrupted run is continued.")
    sub.add_argument("--tokenizer", type=path, required=True, metavar="WEIGHTS", help="weights folder of the tokenizer")
    sub.add_argument("--out", type=path, required=True, metavar="DIR", help="folder of the code store")
    sub.add_argument(
        "--data.path",
        dest="path",
        type=path,
        required=True,
        metavar="PATH",
        help="emoji, a folder with a sub-folder for each class, or tfds:NAME; with --captions what docs/text.md lists",
    )
    sub.add_argument("--data.split", dest="split", default="train", metavar="NAME", help="emoji, tfds: split (default: train)")
    sub.add_argument(
        "--data.label", dest="label", default="subgroup", metavar="NAME", help="emoji only: subgroup (default), group or style"
    )
    sub.add_argument("--data.dir", dest="data_dir", metavar="DIR", help="tfds only: folder of the prepared data")
    sub.add_argument(
        "--image-size",
        type=at_least(1),
        metavar="N",
        help="height and width in pixels (default: the tokenizer's training size)",
    )
    sub.add_argument(
        "--captions", action="store_true", help="store the captions too; --data.path is then a source of captioned images"
    )
    sub.add_argument(
        "--sizes",
        type=parse_sizes,
        metavar="LIST",
        help="crop each image to the nearest of several sizes: HEIGHTxWIDTH,... in pixels, or the buckets of 256, 512, ...",
    )
    sub.add_argument("--batch-size", type=at_least(1), default=32, metavar="N", help="images encoded together (default: 32)")
    sub.add_argument(
        "--num-workers", type=at_least(0), default=0, metavar="N", help="processes that read images (default: 0, threads)"
    )
    sub.add_argument("--flip", action="store_true", help="also store each image mirrored")
    sub.add_argument("--ten-crop", action="store_true", help="store ten crops of each image, as LlamaGen")


def run(args, rest) -> None:
    """maskgil encode"""
    import jax

    from maskgil_jax.checkpoints.weights import load_weights
    from maskgil_jax.config import require
    from maskgil_jax.data.caption_sets import open_captions
    from maskgil_jax.data.images import open_images
    from maskgil_jax.pipelines.encoding import encode_source

    prepare_jax()
    weights = load_weights(args.tokenizer, "tokenizer")
    require(not (args.sizes and args.image_size), "--sizes, --image-size: give one of them")
    image_size = args.sizes[0] if args.sizes else args.image_size or weights.cfg.image_size
    if args.captions:
        source = open_captions(args.path, split=args.split, data_dir=args.data_dir)
    else:
        source = open_images(args.path, split=args.split, label=args.label, size=image_size, data_dir=args.data_dir)
    store = encode_source(
        weights,
        source,
        args.out,
        size=image_size,
        sizes=args.sizes,
        captions=args.captions,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        flip=args.flip,
        ten_crop=args.ten_crop,
    )
    print(f"codes: {store} ({len(source)} images, on {jax.default_backend()})")


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Sizes (height, width) of "64x64,64x96", or the buckets of a side such as "256", the square first."""
    from maskgil_jax.data.buckets import buckets

    if text.isdecimal():
        side = int(text)
        try:
            return sorted(buckets(side), key=lambda size: size != (side, side))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    sizes = [size.split("x") for size in text.split(",")]
    if not all(len(size) == 2 and all(side.strip().isdecimal() and int(side) > 0 for side in size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH,... in pixels, as in 64x64,64x96, or a side, got {text!r}")
    return [(int(height), int(width)) for height, width in sizes]

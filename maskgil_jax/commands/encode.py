"""maskgil encode: encodes a data set once into a code store."""

from __future__ import annotations

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
        help="emoji, a folder with a sub-folder for each class, or tfds:NAME",
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
    from maskgil_jax.data.images import open_images
    from maskgil_jax.pipelines.encoding import encode_source

    prepare_jax()
    weights = load_weights(args.tokenizer, "tokenizer")
    image_size = args.image_size or weights.cfg.image_size
    source = open_images(args.path, split=args.split, label=args.label, size=image_size, data_dir=args.data_dir)
    store = encode_source(
        weights,
        source,
        args.out,
        size=image_size,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        flip=args.flip,
        ten_crop=args.ten_crop,
    )
    print(f"codes: {store} ({len(source)} images, on {jax.default_backend()})")

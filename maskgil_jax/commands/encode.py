"""maskgil encode: a data set tokenised once into a code store."""

from __future__ import annotations

from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    sub = command("encode", run, "Tokenise a data set once into a code store.")
    sub.add_argument("--tokenizer", required=True, help="weights folder of the tokenizer")
    sub.add_argument("--out", required=True, help="folder of the store; an interrupted run is continued")
    sub.add_argument(
        "--data.path", dest="path", required=True, help="emoji, a folder with one sub-folder per class, or tfds:NAME"
    )
    sub.add_argument("--data.split", dest="split", default="train")
    sub.add_argument("--data.label", dest="label", default="subgroup", help="emoji only: subgroup, group or style")
    sub.add_argument("--data.dir", dest="data_dir", help="tfds only: where the prepared data are")
    sub.add_argument("--image-size", type=int, help="default: the tokenizer's training size")
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument("--num-workers", type=int, default=0)
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

"""maskgil encode: encodes a data set once into a code store."""

from __future__ import annotations

import argparse
import logging

from maskgil_jax.commands.parser import at_least, path
from maskgil_jax.commands.start import add_process_options, join_processes, prepare_jax


def add(command) -> None:
    sub = command("encode", run, "Encode a data set into a code store, for training. An interrupted run is continued.")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokenizer", type=path, metavar="WEIGHTS", help="weights folder of the tokenizer")
    text = "encode the captions instead of the images, into a text store: minilm or a Hugging Face folder"
    what.add_argument("--text-encoder", type=path, metavar="FOLDER", help=text)
    sub.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="folder of the store; of codes also gs://bucket/folder"
    )
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
    sub.add_argument("--random-crop", action="store_true", help="cut a random window, as Lumina-mGPT, instead of the middle")
    sub.add_argument(
        "--max-tokens", type=at_least(1), default=128, metavar="N", help="--text-encoder: positions of a text (default: 128)"
    )
    sub.add_argument(
        "--layer", type=int, metavar="N", help="--text-encoder: which hidden state, e.g. -2 (default: the last, normalised)"
    )
    add_process_options(sub)


def run(args, rest) -> None:
    """maskgil encode"""
    import jax

    join_processes(args)
    prepare_jax()
    if jax.process_index() != 0:  # one process logs
        logging.getLogger("maskgil_jax").setLevel(logging.WARNING)
    (encode_images if args.tokenizer else encode_captions)(args)


def encode_images(args) -> None:
    """Writes a code store."""
    import jax

    from maskgil_jax.checkpoints.weights import load_weights
    from maskgil_jax.config import require
    from maskgil_jax.data.caption_sets import open_captions
    from maskgil_jax.data.images import open_images
    from maskgil_jax.pipelines.encoding import encode_source

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
        random_crop=args.random_crop,
    )
    if jax.process_index() == 0:
        print(f"codes: {store} ({len(source)} images, on {jax.default_backend()})")
        print_left_out(source)


def encode_captions(args) -> None:
    """Writes a text store: the features of all captions of a source or of a code store."""
    import pathlib

    import jax

    from maskgil_jax.config import require
    from maskgil_jax.data.caption_sets import open_captions
    from maskgil_jax.data.code_format import MANIFEST
    from maskgil_jax.data.code_store import CodeStore
    from maskgil_jax.files.paths import is_remote
    from maskgil_jax.pipelines.encoding import encode_texts
    from maskgil_jax.text_encoders import load_text_encoder

    require(jax.process_count() == 1, "--text-encoder: runs in one process; start it once, with --num-processes 1")
    require(not is_remote(args.out), f"--out: {args.out}: a text store is written to a local disk; copy the folder there")
    for name in ("sizes", "image_size", "flip", "ten_crop", "random_crop"):
        require(not getattr(args, name), f"--{name.replace('_', '-')}: is for images; leave it out beside --text-encoder")
    if is_remote(args.path) or (pathlib.Path(args.path) / MANIFEST).is_file():
        source = CodeStore(args.path)
        require(source.captioned, f"--data.path: {args.path}: holds codes without captions; encode it with --captions")
    else:
        source = open_captions(args.path, split=args.split, data_dir=args.data_dir)
    encoder = load_text_encoder(args.text_encoder, layer=args.layer, max_tokens=args.max_tokens)
    store, texts, different = encode_texts(source, args.out, encoder, batch_size=args.batch_size)
    print(f"texts: {store} ({texts} captions of {len(source)} images, {different} different ones)")
    print_left_out(source)


def print_left_out(source) -> None:
    """Prints what a source has left out, with the names of the first ones, if there is anything."""
    from maskgil_jax.data.sources.captions import NAMED

    left_out = getattr(source, "left_out", ())
    if isinstance(left_out, dict):
        left_out = [
            f"{len(names)} {kind} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            for kind, names in left_out.items()
        ]
    if left_out:
        print(f"left out: {'; '.join(left_out)}")
    if skipped := getattr(source, "skipped", {}):
        reasons = list(skipped.values())
        print(f"unreadable: {len(reasons)} images ({'; '.join(reasons[:NAMED])}{'; ...' if len(reasons) > NAMED else ''})")


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

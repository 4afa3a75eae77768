"""maskgil edit: change images with a pipeline: fill a hole, redraw a box, vary,
interpolate between classes, outpaint."""

from __future__ import annotations

import argparse
import pathlib

from maskgil_jax.commands.decoding_options import add_decoding_options, with_cli_options
from maskgil_jax.commands.parser import Parser, at_least, in_range, parse_pair, path
from maskgil_jax.commands.sample import add_pipeline_options, add_size_options, grid_of, split_labels
from maskgil_jax.commands.start import prepare_jax


def add(command) -> None:
    menu = command("edit", run, "Edit images: fill a hole, redraw a box, vary, interpolate between classes, outpaint.")

    sub = _mode(menu, "inpaint", "Fill a hole: what is transparent in IMAGE or --mask, or white in an opaque --mask.")
    _add_image(sub)
    sub.add_argument("--mask", type=path, metavar="FILE", help="image file of the same size that marks the hole")
    _add_feather(sub)

    sub = _mode(menu, "box", "Redraw a box of IMAGE, usually as another class.")
    _add_image(sub)
    sub.add_argument(
        "--box",
        type=parse_box,
        required=True,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="the box in pixels; right and bottom are just outside it",
    )
    _add_feather(sub)

    sub = _mode(menu, "vary", "Sample a part of the tokens of IMAGE again.")
    _add_image(sub)
    sub.add_argument(
        "--strength", type=in_range(0, 1), default=0.5, metavar="X", help="share of the tokens sampled again (default: 0.5)"
    )

    sub = _mode(menu, "interpolate", "Images from one class to another.", labels="the two classes, as A,B")
    add_size_options(sub)
    sub.set_defaults(image=None)

    sub = _mode(menu, "outpaint", "Continue IMAGE beyond its edges.")
    _add_image(sub)
    add_size_options(sub)
    sub.add_argument("--place", metavar="ROWxCOLUMN", help="the token at which IMAGE begins (default: it is centred)")
    sub.add_argument(
        "--overlap",
        metavar="ROWSxCOLUMNS",
        help="tokens that neighbouring windows have in common (default: half the training grid)",
    )
    _add_feather(sub)


def _mode(menu: Parser, name: str, text: str, labels: str = "class name or number (default: no class)") -> Parser:
    """The parser of one sub-command of `maskgil edit`, with the options that all have."""
    sub = menu.add_command(name, text, run=run, takes_overrides=False, command="edit", mode=name)
    sub.add_help_all()
    sub.add_argument("--labels", metavar="CLASS", required=name == "interpolate", help=labels)
    sub.add_argument("--count", type=at_least(1), default=4, metavar="N", help="images to make (default: 4)")
    sub.add_argument("--out", type=path, default="edits", help="folder for the images and grid.png (default: edits)")
    add_pipeline_options(sub)
    sub.add_argument("--debug", action="store_true", help="print the traceback of an error")
    for option in ("--ar", "--ar-ratio"):  # options of `maskgil sample`, refused with the reason
        sub.add_argument(option, help=argparse.SUPPRESS)
    add_decoding_options(sub)
    return sub


def _add_image(sub: Parser) -> None:
    sub.add_argument("image", metavar="IMAGE", type=path, help="image file")
    sub.add_argument(
        "--keep-size", action="store_true", help="edit IMAGE at its own size (default: crop and scale it to the training size)"
    )


def _add_feather(sub: Parser) -> None:
    sub.add_argument(
        "--feather", type=at_least(0), metavar="N", help="pixels over which old and new blend (default: half a token's cell)"
    )


def run(args, rest) -> None:
    """maskgil edit"""
    import numpy as np

    from maskgil_jax.config import require
    from maskgil_jax.files.images import contact_sheet, save_png
    from maskgil_jax.pipelines.editing import MASKED_ONLY
    from maskgil_jax.pipelines.pipeline import load

    require(args.ar is None and args.ar_ratio is None, f"--ar: {MASKED_ONLY}")
    if args.mode == "outpaint":
        sizes = (args.grid, args.height, args.width)
        require(any(size is not None for size in sizes), "--height, --width: give the size of the result, or --grid")
        args.place, args.overlap = (parse_pair(name, getattr(args, name), least=0) for name in ("place", "overlap"))
    prepare_jax()
    pipeline = with_cli_options(load(args.weights, rope_scaling=args.rope_scaling), args)
    labels = None if args.labels is None else split_labels(args.labels, pipeline.class_names)
    if args.mode == "interpolate":
        images = _interpolate(pipeline, labels, args)
        sheet = list(images)
    else:
        require(labels is None or len(labels) == 1, f"--labels: {args.mode} takes one class, got {args.labels!r}")
        image_hwc, images = _edit(pipeline, labels, args)
        sheet = list(images) if args.mode == "outpaint" else [image_hwc, *images]

    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        save_png(out / f"{args.mode}-{i:03d}.png", image)
    save_png(out / "grid.png", contact_sheet(np.stack(sheet), columns=len(sheet) if args.mode == "interpolate" else None))
    print(f"{len(images)} images and grid.png in {out}")


def _interpolate(pipeline, labels, args):
    """The images from the first class to the second."""
    import numpy as np

    from maskgil_jax.config import require

    require(len(labels) == 2, f"--labels: interpolate takes two classes, as A,B; got {args.labels!r}")
    require(args.count >= 2, f"--count: interpolate needs at least 2 images, got {args.count}")
    weights = np.linspace(0, 1, args.count)
    return pipeline.interpolate(
        *labels, weights=weights, grid=grid_of(pipeline, args), seed=args.seed, batch_size=args.batch_size
    )[0]


def _edit(pipeline, labels, args):
    """(the image as it is edited, `args.count` edited ones)."""
    import numpy as np

    size = None if args.keep_size else pipeline.generator.cfg.grid[0] * pipeline.tokenizer.cfg.downsample
    image_hwc, mask_hw = read_image_and_mask(args.image, getattr(args, "mask", None), size, needs_mask=args.mode == "inpaint")
    several = np.repeat(image_hwc[None], args.count, axis=0)
    options = dict(seed=args.seed, batch_size=args.batch_size)
    if args.mode == "vary":
        return image_hwc, pipeline.vary(several, labels, strength=args.strength, **options)
    if args.mode == "outpaint":
        options |= dict(place=args.place, overlap=args.overlap, feather=args.feather)
        return image_hwc, pipeline.outpaint(several, grid_of(pipeline, args), labels, **options)
    if args.mode == "box":
        return image_hwc, pipeline.edit_box(several, args.box, labels, feather=args.feather, **options)
    return image_hwc, pipeline.inpaint(several, mask_hw, labels, feather=args.feather, **options)


def read_image_and_mask(image_path, mask_path, size: int | None, *, needs_mask: bool):
    """(uint8 (h, w, 3), bool (h, w) or None) of the files, cropped in the middle and scaled to `size` unless that is
    None.

    Raises a ValueError if a mask is needed and the files mark none, or it has another size than the image.
    """
    from maskgil_jax.data.transforms import adm_center_crop
    from maskgil_jax.files.images import read_alpha, read_image
    from maskgil_jax.pipelines.pictures import scaled_with_hole

    image_hwc, mask_hw = read_image(image_path), None
    if needs_mask:
        alpha_hw = read_alpha(mask_path or image_path)
        if alpha_hw is not None:
            mask_hw = alpha_hw == 0
        elif mask_path is None:
            raise ValueError(f"{image_path}: has no alpha channel that marks a hole; give --mask")
        else:
            mask_hw = read_image(mask_path).mean(axis=-1) >= 128
        if mask_hw.shape != image_hwc.shape[:2]:
            (h, w), (mask_h, mask_w) = image_hwc.shape[:2], mask_hw.shape
            raise ValueError(f"{mask_path}: {mask_w} x {mask_h} pixels, the image has {w} x {h}; they must be the same")
        if not mask_hw.any():
            kind = "transparent" if alpha_hw is not None else "white"
            raise ValueError(f"{mask_path or image_path}: no pixel is {kind}, so there is no hole to fill")
    if size is None or image_hwc.shape == (size, size, 3):
        return image_hwc, mask_hw
    if mask_hw is None:
        return adm_center_crop(image_hwc, size), None
    return scaled_with_hole(image_hwc, mask_hw, lambda part_hwc: adm_center_crop(part_hwc, size))


def parse_box(text: str) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of "8,8,40,40"."""
    sides = text.split(",")
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected LEFT,TOP,RIGHT,BOTTOM in pixels, e.g. 8,8,40,40, got {text!r}")
    left, top, right, bottom = (int(side) for side in sides)
    return left, top, right, bottom

"""maskgil edit: change images with a pipeline: fill a hole, redraw a box, vary, go from class to class, widen."""

from __future__ import annotations

import argparse
import pathlib

from maskgil_jax.commands.sample import add_decoding_options, parse_pair, split_labels, with_cli_options
from maskgil_jax.commands.start import prepare_jax

# mode -> what it does
MODES = {
    "inpaint": "fill a hole: alpha 0 of IMAGE or of --mask, or white of a --mask without alpha",
    "box": "redraw the box --box LEFT,TOP,RIGHT,BOTTOM (pixels), usually as another class",
    "vary": "make a --share of the tokens anew",
    "interpolate": "from class --labels A,B: --count images on the way; takes no IMAGE",
    "outpaint": "continue IMAGE to a --canvas ROWSxCOLUMNS of tokens",
}


def add(command) -> None:
    sub = command("edit", run, "Edit images. " + "; ".join(f"{mode}: {text}" for mode, text in MODES.items()) + ".")
    sub.add_argument("mode", metavar="MODE", help=", ".join(MODES))
    sub.add_argument("image", metavar="IMAGE", nargs="?", help="image file (all modes but interpolate)")
    sub.add_argument("--weights", default="demo", help="pipeline folder, shipped name or hf://owner/repo (default: demo)")
    sub.add_argument("--labels", help="class name or number; default: no class. For interpolate two, with a comma between")
    sub.add_argument("--count", type=int, default=4, help="images to make (default: 4)")
    sub.add_argument("--out", default="edits", help="folder for the images and grid.png (default: edits)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch-size", type=int, default=32)
    sub.add_argument(
        "--keep-size", action="store_true", help="use IMAGE at its own size; default: crop and scale to training's"
    )
    sub.add_argument("--mask", help="inpaint: image file that says where the hole is")
    sub.add_argument("--box", help="box: LEFT,TOP,RIGHT,BOTTOM in pixels, right and bottom just outside")
    sub.add_argument("--share", type=float, help="vary: share of the tokens made anew, 0..1 (default: 0.5)")
    sub.add_argument("--canvas", metavar="ROWSxCOLUMNS", help="outpaint, interpolate: tokens of the canvas")
    sub.add_argument(
        "--place", metavar="ROWxCOLUMN", help="outpaint: the token of the canvas where IMAGE begins (default: middle)"
    )
    sub.add_argument(
        "--overlap",
        metavar="ROWSxCOLUMNS",
        help="outpaint: tokens that neighbouring windows share (default: half the training grid)",
    )
    sub.add_argument("--feather", type=int, help="inpaint, box, outpaint: pixels of the seam (default: half a token's cell)")
    sub.add_argument("--rope-scaling", help="for larger canvases: none, interpolate or ntk (default: stored with the weights)")
    add_decoding_options(sub)
    for stranger in ("--ar", "--ar-ratio"):  # options of `maskgil sample` that are answered with a reason
        sub.add_argument(stranger, help=argparse.SUPPRESS)


def run(args, rest) -> None:
    """maskgil edit"""
    import numpy as np

    from maskgil_jax.config import ConfigError, choose, require
    from maskgil_jax.files.images import contact_sheet, save_png
    from maskgil_jax.pipelines.editing import MASKED_ONLY
    from maskgil_jax.pipelines.pipeline import load

    prepare_jax()
    mode = choose("MODE", args.mode, MODES)
    require(args.count >= 1, f"--count: must be at least 1, got {args.count}")
    require((mode == "interpolate") == (args.image is None), f"IMAGE: {mode} {_takes(mode)}")
    require(args.ar is None and args.ar_ratio is None, f"--ar: {MASKED_ONLY}")
    _refuse_strangers(mode, args)
    canvas = parse_pair("canvas", args.canvas)
    pipeline = with_cli_options(load(args.weights, rope_scaling=args.rope_scaling), args)
    options = dict(seed=args.seed, batch_size=args.batch_size)
    labels = None if args.labels is None else split_labels(args.labels, pipeline.class_names)
    if mode == "interpolate":
        if labels is None or len(labels) != 2:
            raise ConfigError(f"--labels: interpolate goes from one class to another, e.g. A,B; got {args.labels!r}")
        require(args.count >= 2, f"--count: interpolate needs at least 2 images, got {args.count}")
        images = pipeline.interpolate(*labels, weights=np.linspace(0, 1, args.count), grid=canvas, **options)[0]
        sheet = list(images)
    else:
        require(labels is None or len(labels) == 1, f"--labels: {mode} takes one class, got {args.labels!r}")
        size = None if args.keep_size else pipeline.generator.cfg.grid[0] * pipeline.tokenizer.cfg.downsample
        image_hwc, mask_hw = read_picture(args.image, args.mask, size, mask_wanted=mode == "inpaint")
        several = np.repeat(image_hwc[None], args.count, axis=0)
        if mode == "vary":
            images = pipeline.vary(several, labels, share=0.5 if args.share is None else args.share, **options)
        elif mode == "outpaint":
            if canvas is None:
                raise ConfigError("--canvas: outpaint needs it, ROWSxCOLUMNS of tokens")
            place, overlap = parse_pair("place", args.place, least=0), parse_pair("overlap", args.overlap, least=0)
            images = pipeline.outpaint(several, canvas, labels, place=place, overlap=overlap, feather=args.feather, **options)
        elif mode == "box":
            images = pipeline.edit_box(several, parse_box(args.box), labels, feather=args.feather, **options)
        else:
            images = pipeline.inpaint(several, mask_hw, labels, feather=args.feather, **options)
        sheet = list(images) if mode == "outpaint" else [image_hwc, *images]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        save_png(out / f"{mode}-{i:03d}.png", image)
    save_png(out / "grid.png", contact_sheet(np.stack(sheet), columns=len(sheet) if mode == "interpolate" else None))
    print(f"{len(images)} images and grid.png in {out}")


def _takes(mode: str) -> str:
    return "takes no image file" if mode == "interpolate" else "needs an image file: maskgil edit " + mode + " IMAGE"


def _refuse_strangers(mode: str, args) -> None:
    """An option of another mode is a mistake, not something to be silent about."""
    from maskgil_jax.config import require

    homes = {
        "mask": ("inpaint",),
        "box": ("box",),
        "share": ("vary",),
        "canvas": ("outpaint", "interpolate"),
        "place": ("outpaint",),
        "overlap": ("outpaint",),
        "feather": ("inpaint", "box", "outpaint"),
    }
    for name, modes in homes.items():
        require(getattr(args, name) is None or mode in modes, f"--{name}: is an option of {', '.join(modes)}, not of {mode}")


def read_picture(path, mask_path, size: int | None, *, mask_wanted: bool):
    """(uint8 (h, w, 3), bool (h, w) or None) of the files, cropped in the middle and scaled to `size` unless that is None.

    Raises a ValueError if a mask is wanted and the files show none, or it has another size than the image.
    """
    import numpy as np

    from maskgil_jax.data.transforms import adm_center_crop
    from maskgil_jax.files.images import read_alpha, read_image

    image_hwc, mask_hw = read_image(path), None
    if mask_wanted:
        alpha_hw = read_alpha(mask_path or path)
        if alpha_hw is not None:
            mask_hw = alpha_hw == 0
        elif mask_path is None:
            raise ValueError(f"{path}: has no alpha channel to show the hole; give --mask, or a file that is see-through there")
        else:
            mask_hw = read_image(mask_path).mean(axis=-1) >= 128
        if mask_hw.shape != image_hwc.shape[:2]:
            (h, w), (mask_h, mask_w) = image_hwc.shape[:2], mask_hw.shape
            raise ValueError(f"{mask_path}: {mask_w} x {mask_h} pixels, the image has {w} x {h}; they must be the same")
        if not mask_hw.any():
            kind = "is see-through" if alpha_hw is not None else "is white"
            raise ValueError(f"{mask_path or path}: nothing in it {kind}, so there is no hole to fill")
    if size is None or image_hwc.shape == (size, size, 3):
        return image_hwc, mask_hw
    if mask_hw is not None:
        levels_hwc = np.repeat(np.where(mask_hw, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
        mask_hw = adm_center_crop(levels_hwc, size)[..., 0] >= 128
    return adm_center_crop(image_hwc, size), mask_hw


def parse_box(text: str | None) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of "8,8,40,40"."""
    from maskgil_jax.config import ConfigError

    sides = (text or "").split(",")
    if len(sides) != 4 or not all(side.strip().isdecimal() for side in sides):
        raise ConfigError(f"--box: expected LEFT,TOP,RIGHT,BOTTOM in pixels, e.g. 8,8,40,40, got {text!r}")
    left, top, right, bottom = (int(side) for side in sides)
    return left, top, right, bottom

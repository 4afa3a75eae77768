"""The options of `maskgil sample` for generators that are conditioned on text."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskgil_jax.commands.parser import Parser, path

_CLASS_OPTIONS = ("labels", "per_class", "num", "trajectory", "grid")


def add_prompt_options(sub: Parser) -> None:
    """Prompts, a file of them, the negative prompt and the text encoder."""
    sub.add_argument("--prompt", action="append", metavar="TEXT", help="text to draw; may be given several times")
    sub.add_argument("--prompts", type=path, metavar="FILE", help=".txt, a prompt a line, or .jsonl with sizes and seeds")
    sub.add_argument("--negative-prompt", metavar="TEXT", help="what guidance moves away from (default: no text)")
    sub.add_argument(
        "--text-encoder", type=path, metavar="FOLDER", help="encoder of training, if it is not where the weights say"
    )


def requests_of(args) -> list[Any] | None:
    """The requests of the options above, one image each; None without prompts.

    Options are the defaults of a file's lines.
    """
    from maskgil_jax.config import require
    from maskgil_jax.pipelines.prompts import PromptRequest, read_prompts

    if args.prompt is None and args.prompts is None:
        require(args.negative_prompt is None, "--negative-prompt: needs --prompt or --prompts")
        return None
    require(args.prompt is None or args.prompts is None, "--prompt, --prompts: give one of them")
    given = next((name for name in _CLASS_OPTIONS if getattr(args, name)), None)
    require(given is None, f"--{(given or '').replace('_', '-')}: does not go with prompts")
    requests = read_prompts(args.prompts) if args.prompts else [PromptRequest(text) for text in args.prompt]
    defaults = {"negative_prompt": args.negative_prompt, "height": args.height, "width": args.width}
    return [
        dataclasses.replace(request, **{name: value for name, value in defaults.items() if getattr(request, name) is None})
        for request in requests
    ]


def sample_prompts(pipeline, requests: list[Any], args, ar_ratio: float) -> None:
    """Writes an image for each request, and a contact sheet if all have one size."""
    import jax

    from maskgil_jax.files.images import contact_sheet, save_png
    from maskgil_jax.pipelines.jobs import read_samples, sample_to_folder

    options = dict(format=args.format, seed=args.seed, batch_size=args.batch_size, overwrite=args.overwrite, ar_ratio=ar_ratio)
    out = sample_to_folder(pipeline, None, args.out, prompts=requests, **options)
    if jax.process_index() != 0:
        return
    written = f"{len(requests)} images"
    one_size = len({pipeline.grid_of(request.height, request.width) for request in requests}) == 1
    if one_size and args.contact_sheet is not False:
        save_png(out / "grid.png", contact_sheet(read_samples(out)))
        written += " and grid.png"
    print(f"{written} in {out}")

"""maskgil export: weights as a file of the original code, or the sampling program for serving without this package."""

from __future__ import annotations

from maskgil_jax.commands.decoding_options import add_decoding_options, with_cli_options
from maskgil_jax.commands.parser import at_least, path
from maskgil_jax.commands.sample import add_size_options, grid_of


def add(command) -> None:
    sub = command(
        "export",
        run,
        "Write weights as a file that the original code loads (--to), or the sampling program as StableHLO (--stablehlo).",
    )
    sub.add_help_all()
    sub.add_argument("weights", type=path, metavar="WEIGHTS", help="pipeline folder, shipped name or hf://owner/repo")
    sub.add_argument(
        "out",
        nargs="?",
        metavar="OUT",
        help="with --to, file to write: .safetensors, or .pt (needs torch); .msgpack for Google's families",
    )
    sub.add_argument("--to", metavar="FAMILY", help="format of OUT; see maskgil convert --list")
    sub.add_argument(
        "--stablehlo", type=path, metavar="FOLDER", help="folder for the sampling program, to be run with JAX alone"
    )
    sub.add_argument("--batch", type=at_least(1), default=4, metavar="N", help="images of one call (default: 4)")
    sub.add_argument(
        "--platforms", default="cpu", metavar="NAMES", help="cpu, tpu, cuda, or several separated by commas (default: cpu)"
    )
    add_size_options(sub)
    add_decoding_options(sub)


def run(args, rest) -> None:
    """maskgil export"""
    from maskgil_jax.config import require
    from maskgil_jax.convert.main import export_file

    require(bool(args.to) != bool(args.stablehlo), "--to, --stablehlo: give one of them")
    if args.to:
        require(args.out is not None, "OUT: missing; give the file to write")
        print(f"{args.to}: {export_file(args.weights, args.out, args.to)}")
        return
    require(args.out is None, f"{args.out}: --stablehlo FOLDER names the output already")
    _export_program(args)


def _export_program(args) -> None:
    """Writes the sampling program."""
    from maskgil_jax.pipelines.exporting import export_program
    from maskgil_jax.pipelines.pipeline import load

    pipeline = with_cli_options(load(args.weights), args)
    platforms = [name.strip() for name in args.platforms.split(",")]
    manifest = export_program(
        pipeline, args.stablehlo, batch_size=args.batch, platforms=platforms, grid=grid_of(pipeline, args)
    )
    inputs = ", ".join(f"{entry['name']} {entry['dtype']} {tuple(entry['shape'])}" for entry in manifest["inputs"])
    print(f"{args.stablehlo}: {inputs} -> images uint8 {tuple(manifest['output']['shape'])}; for {', '.join(platforms)}")

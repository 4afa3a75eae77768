"""maskgil export: the sampling program for serving without this package."""

from __future__ import annotations

from maskgil_jax.commands.decoding_options import add_decoding_options, with_cli_options
from maskgil_jax.commands.parser import at_least, path
from maskgil_jax.commands.sample import add_size_options, grid_of


def add(command) -> None:
    sub = command("export", run, "Write the sampling program as StableHLO, to be run with JAX alone.")
    sub.add_help_all()
    sub.add_argument("weights", type=path, metavar="WEIGHTS", help="pipeline folder, shipped name or hf://owner/repo")
    sub.add_argument("--stablehlo", type=path, required=True, metavar="OUT", help="folder to write")
    sub.add_argument("--batch", type=at_least(1), default=4, metavar="N", help="images of one call (default: 4)")
    sub.add_argument(
        "--platforms", default="cpu", metavar="NAMES", help="cpu, tpu, cuda, or several separated by commas (default: cpu)"
    )
    add_size_options(sub)
    add_decoding_options(sub)


def run(args, rest) -> None:
    """maskgil export"""
    from maskgil_jax.pipelines.exporting import export_program
    from maskgil_jax.pipelines.pipeline import load

    pipeline = with_cli_options(load(args.weights), args)
    platforms = [name.strip() for name in args.platforms.split(",")]
    manifest = export_program(
        pipeline, args.stablehlo, batch_size=args.batch, platforms=platforms, grid=grid_of(pipeline, args)
    )
    inputs = ", ".join(f"{entry['name']} {entry['dtype']} {tuple(entry['shape'])}" for entry in manifest["inputs"])
    print(f"{args.stablehlo}: {inputs} -> images uint8 {tuple(manifest['output']['shape'])}; for {', '.join(platforms)}")

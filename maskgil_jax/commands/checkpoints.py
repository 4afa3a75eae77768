"""maskgil checkpoints: list and verify the checkpoints of a run."""

from __future__ import annotations


def add(command) -> None:
    sub = command(
        "checkpoints", run, "List the checkpoints of a run and its goodput (time in kept steps); --verify reads every array."
    )
    sub.add_argument("folder", metavar="DIR", help="--workdir of a run or its checkpoints folder, local or gs://")
    sub.add_argument("--verify", action="store_true", help="read every array and compare it with what was saved")


def run(args, rest) -> int:
    """maskgil checkpoints"""
    from etils import epath

    from maskgil_jax.checkpoints.step_folders import listing
    from maskgil_jax.config import ConfigError
    from maskgil_jax.files.paths import size_text
    from maskgil_jax.training.run_events import goodput

    folder = epath.Path(args.folder)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not folder.is_dir():
        raise ConfigError(f"{args.folder}: no such folder")
    good = 0
    print(f"{'step':>14}  {'size':>10}  {'saved':<25}  state")
    for step in listing(folder, read=args.verify):
        good += not step.problem
        state = "verified" if args.verify else "committed"
        state = f"damaged: {step.problem}" if step.problem else state
        print(f"{step.name:>14}  {size_text(step.size):>10}  {step.record.get('saved_at', ''):<25}  {state}", flush=True)
    if steps := goodput(folder.parent if folder.name == "checkpoints" else folder):
        print(steps)
    if not good:
        print(f"no usable checkpoint in {folder}")
        return 4
    return 0

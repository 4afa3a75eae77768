"""The tables of docs/results/tpu_plans.md: every size at several batches on a slice of each chip,
and sampling on one chip.

python -m benchmarks.plans [--results runs/plans]             # compiles what is not there yet, with little effort
python -m benchmarks.plans --only v5e:16x16/xxl/1024 --effort full  # these rows; adds the estimate by cycles
python -m benchmarks.plans --no-compile --into docs/results/tpu_plans.md

Needs the extra [tpu] and no TPU. A row is `maskgil plan` with the options it names. Every program compiled leaves a
JSON file, so an interrupted run goes on where it was; remove the folder after a change of the programs.

Each row takes the first of LAYOUTS that fits. One that did not fit a smaller batch is not tried again, nor one whose
parameters, moments and gradients alone are more than the memory.
"""

import argparse
import contextlib
import io
import json
import math
import pathlib
import sys

import jax

from maskgil_jax import cli
from maskgil_jax.config import LLAMA_PRESETS
from maskgil_jax.networks import count_params
from maskgil_jax.planning.chips import CHIPS

SIZES = ("b", "l", "xl", "xxl")
BATCHES = (256, 512, 1024, 2048, 4096)
TOPOLOGIES = ("v5e:16x16", "v5p:4x4x4", "v6e:16x16")
SAMPLING = ("v5e:1x1", (8, 128))
# (remat, the axis of the mesh that takes all chips), cheapest first: splitting the state over the chips costs traffic
# that can hide behind products; computing matrix products again, or moving them to the host and back, does not. "none"
# is left out: "dots" makes every product once, too, and keeping attention's scores costs more than making them again.
LAYOUTS = (("dots", "data"), ("dots", "fsdp"), ("full", "data"), ("full", "fsdp"), ("offload", "fsdp"))
STATE_BYTES = 16  # a parameter: itself, two moments, a gradient, float32 each
MARKS = ("<!-- tables: python -m benchmarks.plans -->", "<!-- end of tables -->")


def train_options(size: str, batch: int, topology: str, remat: str, axis: str) -> list[str]:
    """Options of `maskgil plan` for a train step."""
    model = [f"--config=configs/c2i_{size}.py", f"--config.batch_size={batch}", f"--config.model.remat={remat}"]
    return [f"--topology={topology}", *model, *(f"--config.mesh.{a}={-1 if a == axis else 1}" for a in ("data", "fsdp"))]


def sampling_options(size: str, batch: int) -> list[str]:
    """Options of `maskgil plan` for sampling on one chip."""
    return [f"--topology={SAMPLING[0]}", f"--config=configs/c2i_{size}.py", f"--decode={batch}"]


class Plans:
    """Plans by their options: from the folder, or compiled now (compiling; else None). full:
    only one made with all effort."""

    def __init__(self, folder: pathlib.Path, compiling: bool):
        self.folder, self.compiling = folder, compiling

    def __call__(self, options: list[str], full: bool) -> dict | None:
        known = self._read(options, True) or (None if full else self._read(options, False))
        if known or not self.compiling:
            return known
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["plan", *options, *([] if full else ["--quick"]), "--json", str(self._file(options, full))]
        print("maskgil", *command[:-2], file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(command)
        jax.clear_caches()
        if code not in (0, 3):
            sys.exit(code)
        return self._read(options, full)

    def _file(self, options: list[str], full: bool) -> pathlib.Path:
        values = [option.partition("=")[2].removeprefix("configs/").replace(":", "-") for option in options]
        kind = "sampling" if any(option.startswith("--decode") for option in options) else "train"
        return self.folder / ("_".join([kind, *values, "full" if full else "quick"]) + ".json")

    def _read(self, options: list[str], full: bool) -> dict | None:
        file = self._file(options, full)
        return json.loads(file.read_text()) if file.exists() else None


def hopeless(size: str, topology: str, axis: str) -> bool:
    """Whether the state alone does not fit, by counting."""
    kind, _, sides = topology.partition(":")
    parts = math.prod(map(int, sides.split("x"))) if axis == "fsdp" else 1
    return STATE_BYTES * count_params(LLAMA_PRESETS[size.upper()]) / parts > CHIPS[kind].memory


def train_rows(plans: Plans, size: str, topology: str, chosen, full: bool) -> list[dict]:
    """One row per batch for which `chosen(name)`, with the first layout that fits, or the last one tried."""
    rows, layouts = [], [layout for layout in LAYOUTS if not hopeless(size, topology, layout[1])]
    for batch in BATCHES:
        if not chosen(f"{topology}/{size}/{batch}"):
            continue
        while True:
            options = train_options(size, batch, topology, *layouts[0])
            plan = plans(options, False)
            if plan is None or plan["fits"] or len(layouts) == 1:
                break
            layouts.pop(0)
        if plan is not None:
            plan = (plans(options, True) or plan) if full and plan["fits"] else plan
            rows.append({"size": size, "batch": batch, "layout": layouts[0], "options": options, "plan": plan})
    return rows


def sampling_rows(plans: Plans, chosen, full: bool) -> list[dict]:
    """One row per size and batch for which `chosen(name)`."""
    rows = []
    for size in SIZES:
        for batch in SAMPLING[1]:
            if chosen(f"{SAMPLING[0]}/{size}/{batch}"):
                options = sampling_options(size, batch)
                if (plan := plans(options, full)) is not None:
                    rows.append({"size": size, "batch": batch, "options": options, "plan": plan})
    return rows


def estimate(plan: dict, kind: str, images: int = 1) -> str:
    """ "12.3 ms, MFU 45%" of a run, or of one of its `images`."""
    found = plan["estimates"].get(kind)
    return f"{found['seconds'] / images * 1e3:.3g} ms, MFU {found['mfu']:.0%}" if found and plan["fits"] else ""


def bound_by(plan: dict) -> str:
    """The part of the roofline that takes longest."""
    parts = plan["estimates"]["roofline_parts"]
    return max(parts, key=parts.get) if plan["fits"] else ""


def memory(plan: dict) -> str:
    gib = f"{plan['peak'] / 2**30:.1f} of {plan['chip_memory'] / 2**30:.0f} GiB"
    return gib if plan["fits"] else f"does not fit: {gib}"


def command(options: list[str], plan: dict) -> str:
    quick = " --quick" if plan["quick"] else ""
    return f"`maskgil plan {' '.join(options)}{quick}`"


def table(rows: list[dict]) -> str:
    """Rows of one kind as Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


def train_line(row: dict) -> dict:
    plan, (remat, axis) = row["plan"], row["layout"]
    return {
        "size": row["size"].upper(),
        "batch": row["batch"],
        "a chip": f"{row['batch'] / plan['devices']:g}",
        "mesh": f"{axis}={plan['devices']}",
        "remat": remat,
        "memory a chip": memory(plan),
        "roofline": estimate(plan, "roofline"),
        "bound by": bound_by(plan),
        "cycles": estimate(plan, "cycles"),
        "command": command(row["options"], plan),
    }


def sampling_line(row: dict) -> dict:
    plan, images = row["plan"], row["batch"]
    traffic = 2 * (plan["written"] or 0) + (plan["arguments"] or 0)
    return {
        "size": row["size"].upper(),
        "batch": images,
        "memory": memory(plan),
        "FLOPs an image": f"{plan['products'] / images:.3g}",
        "read and written an image": f"{traffic / images / 2**20:.0f} MiB",
        "roofline, an image": estimate(plan, "roofline", images),
        "bound by": bound_by(plan),
        "cycles, an image": estimate(plan, "cycles", images),
        "command": command(row["options"], plan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("runs/plans"), help="folder of JSON files")
    parser.add_argument("--only", default="", help="rows whose topology/size/batch starts with one of a,b,c")
    parser.add_argument("--effort", choices=("low", "full"), default="low", help="of the compiler")
    parser.add_argument("--no-compile", action="store_true", help="show what is there")
    parser.add_argument("--into", type=pathlib.Path, help="Markdown file whose part between the marks is replaced")
    args = parser.parse_args()
    plans, full = Plans(args.results, not args.no_compile), args.effort == "full"

    def chosen(name: str) -> bool:
        return any(name.startswith(start) for start in args.only.split(","))

    parts = []
    for topology in TOPOLOGIES:
        rows = [row for size in SIZES for row in train_rows(plans, size, topology, chosen, full)]
        if rows:
            parts.append(f"### Train step, {topology}\n\n{table([train_line(row) for row in rows])}")
    if rows := sampling_rows(plans, chosen, full):
        parts.append(f"### Sampling, {SAMPLING[0]}\n\n{table([sampling_line(row) for row in rows])}")
    text = "\n\n".join(parts)
    print(text)
    if args.into:
        before, _, rest = args.into.read_text().partition(MARKS[0])
        _, found, after = rest.partition(MARKS[1])
        if not found:
            sys.exit(f"{args.into}: has no part between {MARKS[0]} and {MARKS[1]}")
        args.into.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()

"""The plan of a program: compiled ahead of time, and the memory and time that follow from the result."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter

import jax

from maskgil_jax.planning import hlo
from maskgil_jax.planning.chips import Chip
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.planning.program import Program

_NEEDED = re.compile(r"([\d.]+)([KMGT])\)? exceeds available|Used ([\d.]+)([KMGT]) of")
_SCALES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LOW_EFFORT = {"optimization_level": 9}  # an option of the compiler: O0 by its number, since JAX 0.10 does not take the name
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """Figures of one run of the program on one device, in bytes, FLOPs and seconds; None: not known.

    peak: memory the compiler reserves, or, if that exceeds the device, what it would have needed.
    products, others: FLOPs of the whole program (`flops.Flops`) divided by the devices. useful: those the mathematics
    needs.
    written: bytes that instructions write to memory. collectives: {kind: (how many, bytes)}. cycles: {kind: cycles}.
    kernels: {name: (runs, FLOPs, bytes)}, for which the compiler counts no cycles. parts: {part of the program:
    cycles}.
    most_expensive: the instructions with most cycles, each (cycles of all runs, runs, sort, part, result and name).
    """

    devices: int
    images: int
    peak: int
    fits: bool
    products: float
    others: float
    model_flops: float
    compile_seconds: float
    arguments: int | None = None
    temporaries: int | None = None
    written: int | None = None
    collectives: dict[str, tuple[int, int]] | None = None
    cycles: dict[str, int] | None = None
    kernels: dict[str, tuple[int, int, int]] | None = None
    parts: dict[str, int] | None = None
    most_expensive: list[tuple[int, int, str, str, str]] | None = None

    def roofline(self, chip: Chip) -> dict[str, float]:
        """Seconds that products, memory and links would each take at the published peaks.

        A step takes the longest at least.

        Memory: `traffic`. Links: a ring sends and receives about twice an all-reduce's bytes and once those of the
        others.
        """
        traffic = self.traffic()
        if traffic is None or self.collectives is None:
            return {"products": self.products / chip.flops}
        sent = sum(moved * (2 if kind == "all-reduce" else 1) for kind, (_, moved) in self.collectives.items())
        return {
            "products": self.products / chip.flops,
            "memory": traffic / chip.bandwidth,
            "links": sent / chip.links,
        }

    def cycle_seconds(self, chip: Chip) -> float | None:
        """Seconds by the compiler's estimated cycles, one instruction after another, and of kernels.

        Without collectives.
        """
        return sum(self.cycles.values()) / chip.clock + self.kernel_seconds(chip) if self.cycles else None

    def kernel_seconds(self, chip: Chip) -> float:
        """Seconds of the kernels at the published peaks, from their cost estimates: a lower bound."""
        return sum(max(flops / chip.flops, moved / chip.bandwidth) for _, flops, moved in (self.kernels or {}).values())

    def utilisation(self, seconds: float, chip: Chip) -> float:
        """MFU: the share of the chip's peak that the useful FLOPs are, if a run takes `seconds`."""
        return self.model_flops / (seconds * chip.flops)

    def traffic(self) -> int | None:
        """Bytes that one run reads and writes in a device's memory: what is written is read once,
        and so are the arguments."""
        return None if self.written is None else 2 * self.written + (self.arguments or 0)

    def estimates(self, chip: Chip) -> dict[str, dict[str, float]]:
        """{"roofline", "cycles": {"seconds", "mfu"}}, and the parts of the roofline;
        "cycles" where the compiler counted."""
        parts = self.roofline(chip)
        seconds = {"roofline": max(parts.values())}
        if (counted := self.cycle_seconds(chip)) is not None:
            seconds["cycles"] = counted
        found = {name: {"seconds": s, "mfu": self.utilisation(s, chip)} for name, s in seconds.items()}
        return found | {"roofline_parts": parts}


def make_plan(program: Program, devices: int, chip: Chip | None, *, top: int = 0, low_effort: bool = False) -> Plan:
    """Traces, compiles and measures `program`, whose mesh has `devices` devices of `chip` (None: of this machine).

    quick: with the compiler's lowest effort, several times faster. Its cycle counts are then meaningless and left out,
    and bytes written are overstated, since values are not kept on the chip; memory, FLOPs and collectives hardly
    change.
    top: how many of the most expensive instructions to list.
    """
    traced = program.traced()
    total = count_flops(traced.jaxpr)
    lowered, began = traced.lower(), time.perf_counter()

    def plan(**found) -> Plan:
        return Plan(
            devices=devices,
            images=program.images,
            products=total.products / devices,
            others=total.others / devices,
            model_flops=program.model_flops / devices,
            compile_seconds=time.perf_counter() - began,
            **found,
        )

    try:
        compiled = lowered.compile(LOW_EFFORT if low_effort else None)
    except jax.errors.JaxRuntimeError as error:
        needed = bytes_needed(str(error))
        if needed is None:
            raise
        return plan(peak=needed, fits=False)
    memory, text = compiled.memory_analysis(), hlo.Program(compiled.as_text())
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    most_expensive = text.most_expensive()
    peak = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    return plan(
        peak=peak,
        fits=chip is None or peak <= chip.memory,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        written=text.written_bytes(),
        collectives=text.collectives(),
        cycles=None if low_effort else text.cycles() or None,
        kernels=None if low_effort else text.kernels() or None,
        parts=None if low_effort else parts(most_expensive) or None,
        most_expensive=[(c, runs, text.sort_of(i), i.part, f"{i.type} {i.name}") for c, runs, i in most_expensive[:top]]
        or None,
    )


def parts(most_expensive: list[tuple[int, int, hlo.Instruction]]) -> dict[str, int]:
    """{part of the program: cycles} of `hlo.Program.most_expensive`."""
    total: Counter[str] = Counter()
    for cycles, _, instruction in most_expensive:
        total[instruction.part] += cycles
    return dict(total.most_common())


def bytes_needed(message: str) -> int | None:
    """The bytes that an out-of-memory error of the compiler asks for; None for any other error."""
    found = _NEEDED.search(message) if "RESOURCE_EXHAUSTED" in message else None
    return int(float(found[1] or found[3]) * _SCALES[found[2] or found[4]]) if found else None


def as_text(plan: Plan, chip: Chip | None, heading: list[tuple[str, str]]) -> str:
    """The plan as aligned lines for people; with the assumptions of every estimate."""
    rows = list(heading)
    if plan.arguments is None or plan.temporaries is None:
        rows.append(("memory a device", f"needs {plan.peak / GIB:.2f} GiB or more"))
    else:
        rows.append(
            (
                "memory a device",
                f"{plan.peak / GIB:.2f} GiB: arguments {plan.arguments / GIB:.2f}, temporaries {plan.temporaries / GIB:.2f}",
            )
        )
    if chip:
        rows.append(("", f"{'fits' if plan.fits else 'DOES NOT FIT'} into the {chip.memory / GIB:.0f} GiB of a {chip.name}"))
    rows.append(
        (
            "FLOPs a device",
            f"{plan.products:.3e} in products, {plan.others:.3e} elsewhere; {plan.model_flops:.3e} needed "
            f"({plan.model_flops / plan.products:.0%} of the products: 6ND + attention, or 2ND a call when sampling)",
        )
    )
    if (traffic := plan.traffic()) is not None:
        share = plan.devices / plan.images
        each = f"{plan.products * share:.3e} FLOPs in products, {traffic * share / 2**20:.1f} MiB read and written"
        if chip:
            each += f", {max(plan.roofline(chip).values()) * share * 1e3:.2f} ms of one chip by the roofline below"
        rows.append(("an image", each))
    for kind, (count, moved) in (plan.collectives or {}).items():
        rows.append((kind, f"{count} a run, {moved / 2**20:.1f} MiB of results a device"))
    if chip:
        rows += _estimates(plan, chip)
    rows.append(("compiled in", f"{plan.compile_seconds:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _estimates(plan: Plan, chip: Chip) -> list[tuple[str, str]]:
    parts = plan.roofline(chip)
    longest = max(parts.values())
    rows = [("estimate, roofline", _timed(plan, longest, chip) + ", at least: " + _shares(parts))]
    rows.append(
        (
            "  assumes",
            f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of HBM, {chip.links / 1e9:.0f} GB/s of links "
            "(published); all three at their peak and at the same time",
        )
    )
    if plan.cycles and (seconds := plan.cycle_seconds(chip)):
        by_kind = {kind: count / chip.clock for kind, count in plan.cycles.items() if count > 0.005 * sum(plan.cycles.values())}
        rows.append(("estimate, compiler's cycles", _timed(plan, seconds, chip) + ": " + _shares(by_kind)))
        rows.append(("  assumes", f"{chip.clock / 1e9:.2f} GHz; one instruction after another; collectives hidden behind them"))
        if plan.kernels:
            runs = ", ".join(f"{name} {count} times" for name, (count, _, _) in plan.kernels.items())
            rows.append(
                (
                    "  and kernels",
                    f"{plan.kernel_seconds(chip) * 1e3:.1f} ms in that, at the published peaks (at least): {runs}",
                )
            )
        if plan.most_expensive:
            rows.append(("  by part", _shares({part: cycles / chip.clock for part, cycles in (plan.parts or {}).items()})))
            rows += [
                (f"  {cycles / chip.clock * 1e3:.2f} ms", f"{runs} x {sort}, {part}: {name[:90]}")
                for cycles, runs, sort, part, name in plan.most_expensive
            ]
    return rows


def _timed(plan: Plan, seconds: float, chip: Chip) -> str:
    rate = plan.images / seconds
    return f"{seconds * 1e3:.1f} ms, {rate:.0f} images/s, MFU {plan.utilisation(seconds, chip):.1%}"


def _shares(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in parts.items())

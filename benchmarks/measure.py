"""Timing of one compiled program: compile time apart from run time, memory as the compiler plans it,
compilations counted."""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import jax

from maskgil_jax.files.atomic import write_json


def measure(function, *args, images: int, repeats: int, fresh=lambda args, result: args) -> dict:
    """Compiles `function(*args)` ahead of time and runs it `repeats` times after one warm-up.

    fresh: (args, last result) -> args of the next run, for programs that consume (donate) their arguments.
    """
    began = time.perf_counter()
    compiled = function.lower(*args).compile()
    compile_s = time.perf_counter() - began
    memory, runs = compiled.memory_analysis(), []
    result = jax.block_until_ready(compiled(*args))
    for _ in range(repeats):
        args = fresh(args, result)
        result, *run = timed(lambda now=args: jax.block_until_ready(compiled(*now)))
        runs.append(run)
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {"compile_s": round(compile_s, 1), **_summary(runs, images), "peak_gib": round(peak / 2**30, 2)}


def timed(function: Callable) -> tuple:
    """(result, seconds, CPU-seconds of all threads) of one call."""
    began, busy = time.perf_counter(), _cpu_seconds()
    result = function()
    return result, time.perf_counter() - began, _cpu_seconds() - busy


def in_turns(forms: dict[str, Callable], images: int, repeats: int) -> list[dict]:
    """One row for each form of the same work.

    They take turns, so that what else the machine does falls on all alike.
    """
    runs = {name: [] for name in forms}
    for form in forms.values():
        form()  # a first call may still compile or allocate
    for _ in range(repeats):
        for name, form in forms.items():
            runs[name].append(timed(form)[1:])
    return [{"form": name, **_summary(runs[name], images)} for name in forms]


def _summary(runs: list, images: int) -> dict:
    seconds, busy = zip(*runs)
    middle = statistics.median(seconds)
    figures = {"seconds": middle, "fastest_s": min(seconds), "slowest_s": max(seconds), "cpu_s": statistics.median(busy)}
    return {name: digits(x) for name, x in (figures | {"images_per_s": images / middle}).items()}


def digits(x: float) -> float:
    """x to four digits: steps take from milliseconds to minutes."""
    return float(f"{x:.4g}")


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def options(text: str) -> argparse.ArgumentParser:
    """Flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--presets", default="B", help="comma-separated (default: B)")
    parser.add_argument("--batches", default="1,8", help="comma-separated batch sizes (default: 1,8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32" if jax.default_backend() == "cpu" else "bfloat16")
    parser.add_argument("--json", help="also write the rows to this file")
    return parser


def table(rows: list[dict]) -> str:
    """Rows of one kind as a Markdown table."""
    lines = ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0]), *lines])


def report(rows: list[dict], file: str | None, **more: list[dict]) -> None:
    """Prints the rows as a table; lone times depend on the machine, so it is named.

    `more` rows go into the file only.
    """
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}; median times, memory as planned by the compiler\n")
    if rows:
        print(table(rows))
    if file:
        write_json(file, {"device": device.device_kind, "jax": jax.__version__, "rows": rows, **more})

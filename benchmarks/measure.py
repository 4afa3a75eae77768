"""Timing of one compiled program: compile time apart from run time, memory as the compiler plans it, compilations counted."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import jax


def measure(function, *args, images: int, repeats: int, fresh=lambda args, result: args) -> dict:
    """Compiles `function(*args)` ahead of time and runs it `repeats` times after one warm-up.

    fresh: (args, last result) -> args of the next run, for programs that consume (donate) their arguments.
    """
    began = time.perf_counter()
    compiled = function.lower(*args).compile()
    compile_s = time.perf_counter() - began
    memory, seconds = compiled.memory_analysis(), []
    result = jax.block_until_ready(compiled(*args))
    for _ in range(repeats):
        args = fresh(args, result)
        began = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - began)
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "compile_s": round(compile_s, 1),
        "seconds": round(statistics.median(seconds), 3),
        "fastest_s": round(min(seconds), 3),
        "slowest_s": round(max(seconds), 3),
        "images_per_s": round(images / statistics.median(seconds), 3),
        "peak_gib": round(peak / 2**30, 2),
    }


def options(text: str) -> argparse.ArgumentParser:
    """Flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--presets", default="B", help="comma-separated (default: B)")
    parser.add_argument("--batches", default="1,8", help="comma-separated batch sizes (default: 1,8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32" if jax.default_backend() == "cpu" else "bfloat16")
    parser.add_argument("--json", help="also write the rows to this file")
    return parser


def report(rows: list[dict], file: str | None) -> None:
    """Prints the rows as a Markdown table; lone times depend on the machine, so it is named."""
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}; median times, memory as planned by the compiler\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    if file:
        with open(file, "w") as out:
            json.dump({"device": device.device_kind, "jax": jax.__version__, "rows": rows}, out, indent=1)

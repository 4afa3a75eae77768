"""Text encoders and what a text costs: captions a second, decoding with a text beside a class,
memory of loading a Gemma.

python -m benchmarks.text [--encoders minilm,clip-l,t5-small,gemma-like,gemma2-like] [--torch-python PYTHON]
    [--parts encoders,decode,memory] [--gigabytes 5.2] [--json FILE]

Encoders have random weights in published sizes; the Gemma ones have fewer layers and words. With --torch-python the
same folder runs in the transformers library, in turns: PYTHON is an interpreter with torch and transformers, and may
belong to another environment. Weights are float32 and both sides have the same threads.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import digits, in_turns, report, table, timed
from maskgil_jax.config import LLAMA_PRESETS, DecodeConfig
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition, TextCondition
from maskgil_jax.models.layers import normal_init
from maskgil_jax.networks import create
from maskgil_jax.planning.flops import count_flops
from maskgil_jax.text_encoders import load_text_encoder
from maskgil_jax.text_encoders.load import NETWORKS

CONFIGS: dict[str, dict] = {
    "minilm": dict(
        model_type="bert",
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    ),
    "clip-l": dict(
        model_type="clip_text_model",
        vocab_size=49408,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        projection_dim=768,
        hidden_act="quick_gelu",
        eos_token_id=49407,
        bos_token_id=49406,
    ),
    "t5-small": dict(
        model_type="t5",
        vocab_size=32128,
        d_model=512,
        d_ff=1024,
        d_kv=64,
        num_heads=6,
        num_layers=8,
        feed_forward_proj="gated-gelu",
    ),
    "gemma-like": dict(
        model_type="gemma",
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=8192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
    ),
    "gemma2-like": dict(
        model_type="gemma2",
        vocab_size=32000,
        hidden_size=1152,
        intermediate_size=4608,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=4096,
        hidden_activation="gelu_pytorch_tanh",
    ),
}
GEMMA_2B = dict(model_type="gemma2", vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26)
TOLERANCE = 1e-4  # of the largest state: two float32 programs of up to 12 layers
MEMORY = """
import pathlib, re, sys
import jax, numpy
from maskgil_jax.text_encoders import load_text_encoder
used = lambda key: int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
jax.device_put(numpy.zeros(3)).block_until_ready()
before = used("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
encoder = load_text_encoder(sys.argv[1], dtype="bfloat16")
jax.block_until_ready(encoder.params)
print(used("VmHWM") - before)
"""


# ------------------------------------------------------------------------------------------------ folders
def write_folder(folder: pathlib.Path, values: dict, dtype: str = "float32") -> int:
    """Writes config.json and random weights, tensor by tensor; returns the bytes of the weights."""
    network = NETWORKS[values["model_type"]]
    (folder / "config.json").write_text(json.dumps(values))
    entries, rng, size = network.table(network.read_config(values, "config.json")), np.random.default_rng(0), 0
    width, header = {"float32": 4, "bfloat16": 2}[dtype], {}
    for name, shape in entries.values():
        header[name] = {
            "dtype": {4: "F32", 2: "BF16"}[width],
            "shape": shape,
            "data_offsets": [size, size := size + width * int(np.prod(shape))],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for path, (_, shape) in entries.items():
            file.write(_values(rng, path, shape, values["model_type"]).astype(jnp.dtype(dtype)).tobytes())
    return size


def _values(rng, path: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    if path.endswith("norm/weight"):
        return np.full(shape, 0.0 if kind.startswith("gemma") else 1.0, np.float32)
    if path.endswith("bias"):
        return np.zeros(shape, np.float32)
    scale = shape[-1] ** -0.5 if "layers/" in path else 0.02
    if kind == "t5" and path.endswith("q/weight"):
        scale /= 8  # scores are not divided by the root of the head's width: T5 starts with small queries
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def inputs_of(values: dict, rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and a mask of captions of a quarter of the tokens up to all."""
    rng, lengths = np.random.default_rng(1), np.linspace(tokens // 4, tokens, rows).astype(int)
    mask = np.arange(tokens)[None] < lengths[:, None]
    ids = rng.integers(100, 30000, (rows, tokens))
    return np.where(mask, ids, 0).astype(np.int32), mask


# ------------------------------------------------------------------------------------------------ encoders
@contextmanager
def torch_side(python: str, folder: pathlib.Path, inputs: pathlib.Path, threads: int) -> Iterator[Callable[[str], dict]]:
    """Yields `ask(line)` of `benchmarks/torch_text.py` in another process; the first answer has its versions."""
    script = pathlib.Path(__file__).with_name("torch_text.py")
    # Threads that wait must not spin: the other side has the cores then.
    env = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "KMP_BLOCKTIME": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, str(script), str(folder), str(inputs), str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdin and process.stdout

        def ask(line: str = "") -> dict:
            if line:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise SystemExit(f"--torch-python {python}: ended early; it needs torch and transformers")
            return json.loads(answer)

        yield ask
        process.stdin.close()


def encoder_rows(name: str, args) -> list[dict]:
    """Captions a second of one encoder, and of the transformers library beside it."""
    values, threads = CONFIGS[name], len(os.sched_getaffinity(0))
    tokens = min(args.tokens, 77) if name.startswith("clip") else args.tokens
    ids, mask = inputs_of(values, args.rows, tokens)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        parameters = write_folder(folder, values) / 4
        np.savez(folder / "inputs.npz", ids=ids, mask=mask)
        encoder = load_text_encoder(folder, max_tokens=tokens)
        ours = np.asarray(encoder.states(ids, mask))
        trace = jax.make_jaxpr(lambda params: encoder.apply(params, ids, mask))(encoder.params)
        case = {"encoder": name, "M parameters": round(parameters / 1e6), "GFLOP": round(count_flops(trace).products / 1e9)}
        runs: dict[str, list] = {"maskgil_jax": []}

        def jax_run() -> list[float]:
            return list(timed(lambda: jax.block_until_ready(encoder.states(ids, mask)))[1:])

        if not args.torch_python:
            runs["maskgil_jax"] = [jax_run() for _ in range(args.repeats)]
            return [case | _figures("maskgil_jax", runs["maskgil_jax"], args.rows)]
        with torch_side(args.torch_python, folder, folder / "inputs.npz", threads) as ask:
            other = ask()
            form = f"transformers {other['transformers']}, torch {other['torch']}"
            ask(f"save {folder / 'theirs.npy'}")
            theirs = np.load(folder / "theirs.npy")
            error = np.abs(ours - theirs)[mask].max() / np.abs(theirs).max()
            if not error < TOLERANCE:
                raise SystemExit(f"{name}: the states differ by {error:.1e} of the largest, expected less than {TOLERANCE:g}")
            runs[form] = []
            for _ in range(args.repeats):
                runs["maskgil_jax"].append(jax_run())
                answer = ask("run")
                runs[form].append([answer["seconds"], answer["cpu_s"]])
    rows = [case | _figures(form, found, args.rows) for form, found in runs.items()]
    first = rows[0]
    return [row | {f"{n}, times ours": round(row[n] / first[n], 2) for n in ("seconds", "CPU-seconds")} for row in rows]


def _figures(form: str, runs: list, rows: int) -> dict:
    seconds, busy = (float(np.median(column)) for column in zip(*runs))
    return {"form": form, "captions/s": digits(rows / seconds), "seconds": digits(seconds), "CPU-seconds": digits(busy)}


# ------------------------------------------------------------------------------------------------ decoding
def decode_rows(args) -> list[dict]:
    """Decoding with a class and with a text of 128 positions, in turns: times beside the work."""
    forms, work = {}, {}
    options, key = DecodeConfig(steps=8, guidance=2.0), jax.random.key(3)
    for condition in ("class", "text"):
        cfg = LLAMA_PRESETS[args.preset]
        if condition == "text":
            cfg = dataclasses.replace(
                cfg, condition="text", text_tokens=128, text_dim=384, prefix_rotation="identity", caption_norm=True
            )
        cfg = dataclasses.replace(cfg, dtype="float32")
        generator = create(cfg, jax.random.key(1))
        generator.head.kernel[...] = normal_init(jax.random.key(2), generator.head.kernel.shape)
        features_btd = jax.random.normal(jax.random.key(4), (args.images, 128, 384))
        asked = {
            "class": ClassCondition(jnp.arange(args.images, dtype=jnp.int32)),
            "text": TextCondition(features_btd, jnp.ones((args.images, 128), bool)),
        }[condition]
        program = jax.jit(lambda network, asked, key: decode(network, asked, key, options))
        compiled = program.lower(generator, asked, key).compile()
        forms[condition] = lambda run=compiled, given=(generator, asked, key): jax.block_until_ready(run(*given))
        trace = jax.make_jaxpr(lambda network, asked=asked: decode(network, asked, key, options))(generator)
        work[condition] = count_flops(trace).products
    found = in_turns(forms, images=args.images, repeats=args.repeats)
    least = found[0]
    return [
        {
            "preset": args.preset,
            "condition": row["form"],
            "seconds": row["seconds"],
            "CPU-seconds": row["cpu_s"],
            "GFLOP": round(work[row["form"]] / 1e9),
            "seconds, times class": round(row["seconds"] / least["seconds"], 2),
            "CPU-seconds, times class": round(row["cpu_s"] / least["cpu_s"], 2),
            "GFLOP, times class": round(work[row["form"]] / work["class"], 2),
        }
        for row in found
    ]


# ------------------------------------------------------------------------------------------------ memory
def memory_rows(args) -> list[dict]:
    """Peak memory of a process that loads a Gemma 2 folder in bfloat16, beyond what JAX itself takes."""
    layers = GEMMA_2B["num_hidden_layers"]
    values = GEMMA_2B | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}
    per_layer, words = 2 * 77.9e6, 2 * 256000 * 2304  # bytes
    values["num_hidden_layers"] = max(1, min(layers, round((args.gigabytes * 1e9 - words) / per_layer)))
    text = pathlib.Path("/proc/meminfo").read_text()
    free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1])  # type: ignore[index]
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        needed = words + per_layer * values["num_hidden_layers"]
        if free < 1.4 * needed or shutil.disk_usage(place).free < 1.2 * needed:
            raise SystemExit(f"memory: {needed / 1e9:.1f} GB do not fit here; give smaller --gigabytes")
        size = write_folder(pathlib.Path(place), values, "bfloat16")
        done = subprocess.run([sys.executable, "-c", MEMORY, place], capture_output=True, text=True, check=True)
    peak = int(done.stdout)
    return [
        {"folder, GB": round(size / 1e9, 2), "peak, GB": round(peak / 1e9, 2), "peak, times the file": round(peak / size, 3)}
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default=",".join(CONFIGS), help=f"comma-separated (default: {','.join(CONFIGS)})")
    parser.add_argument("--parts", default="encoders,decode,memory", help="comma-separated (default: encoders,decode,memory)")
    parser.add_argument("--torch-python", metavar="PYTHON", help="interpreter with torch and transformers")
    parser.add_argument("--rows", type=int, default=32, help="captions of a batch (default: 32)")
    parser.add_argument("--tokens", type=int, default=77, help="positions of a caption (default: 77)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each form (default: 5)")
    parser.add_argument("--preset", default="B", help="generator of the decoding part (default: B)")
    parser.add_argument("--images", type=int, default=1, help="images of the decoding part (default: 1)")
    parser.add_argument("--gigabytes", type=float, default=5.2, help="size of the Gemma folder (default: 5.2)")
    parser.add_argument("--folder", help="where to write the Gemma folder (default: the system's temporary folder)")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    found: dict[str, list[dict]] = {}
    for part in args.parts.split(","):
        if part == "encoders":
            found[part] = []
            for name in args.encoders.split(","):
                rows = encoder_rows(name, args)
                found[part] += rows
                print(table(rows) + "\n", flush=True)
        else:
            found[part] = {"decode": decode_rows, "memory": memory_rows}[part](args)
            print(table(found[part]) + "\n", flush=True)
    report([], args.json, **found)


if __name__ == "__main__":
    main()

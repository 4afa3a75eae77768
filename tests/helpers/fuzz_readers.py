"""Changes the files of a corpus at random and reads them: `python -m helpers.fuzz_readers --seconds 600` in `tests/`.

A read must give arrays of the stated shapes, or a `ValueError` of one printable line that begins with the place of the
file, within 5 seconds and 1 GiB more than at the start. Everything else is a fault: the changed file is kept in --out,
and a JSON line tells of it. --replay reads files as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile

import numpy as np

from maskgil_jax.convert.diffusers_options import diffusers_options
from maskgil_jax.convert.readers.detect import read
from maskgil_jax.convert.readers.sidecar import read_sidecar_configs
from maskgil_jax.text_encoders.folder import network_options, read_config, stored_tensors
from maskgil_jax.text_encoders.load import NETWORKS
from maskgil_jax.text_encoders.text_tokens import TextTokenizer

CORPUS = pathlib.Path(__file__).parents[1] / "golden" / "fuzz"
SECONDS, BYTES = 5, 1 << 30  # of one read
EDGES = [0, 1, 0x7F, 0x80, 0xFF, ord("R"), ord("."), ord("("), ord("}"), ord("Q"), 0x93, 0x95, 0x81, 0x94]
NUMBERS = [
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x00" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\x00\x00\x00\x80",
    b"\x00\x00\x00\x00\x01\x00\x00\x00",
]
VALUES = [None, True, False, 0, 1, -1, 2, 3, 2**31, 2**40, 2**63, -(2**63), 1e300, 1.5, -0.5, "", "a", "../x", "\x00", "\u202e"]
VALUES += ["a\nb", [], {}, [1], ["a"], [[]], {"a": 1}, float("inf"), float("nan"), "9" * 400]


# ------------------------------------------------------------------------------------------------ reading
def read_weights(path: pathlib.Path) -> None:
    found = read(path, verify=True)
    for name in found:
        array = found[name]
        assert isinstance(array, np.ndarray) and array.shape == found.entries[name].shape, (name, array.shape)
        array.sum()


def read_sidecar(path: pathlib.Path) -> None:
    for tree in read_sidecar_configs(path.with_suffix(".pt")).values():
        assert isinstance(tree, dict)
        diffusers_options(tree)


def read_tokenizer(path: pathlib.Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "tokenizer.json")
    ids_bt, mask_bt = TextTokenizer(folder, 8)(["red cat", "", "blue " * 20])
    assert ids_bt.shape == mask_bt.shape == (3, 8)


def read_encoder(path: pathlib.Path) -> None:
    folder = path.parent / "folder"
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder / "config.json")
    values = read_config(folder, NETWORKS)
    network = NETWORKS[values["model_type"]]
    cfg = network_options(network.read_config, values, folder / "config.json")
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    network.names_in_file(folder, cfg, {name: tensor.shape for name, tensor in stored_tensors(folder).items()})


TARGETS = {"weights": read_weights, "sidecar": read_sidecar, "tokenizer": read_tokenizer, "encoder": read_encoder}


class Hang(BaseException):
    """A read took longer than `SECONDS`."""


def fault_of(path: pathlib.Path) -> str | None:
    """What is wrong with how the file is read; None if it is read, or refused as it should be."""

    def alarm(*_):
        raise Hang

    signal.signal(signal.SIGPROF, alarm)  # CPU time, so that a busy machine is no hang
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            TARGETS[path.name.split("-")[0]](path)
    except ValueError as error:
        line = str(error).split("\n")[0]
        if not line.startswith(str(path.parent)) or not line.isprintable() or len(line) > len(str(path)) + 500:
            return f"refused by {type(error).__name__}: {str(error)[:300]!r}"
    except Hang:
        return f"hangs for {SECONDS} s"
    except BaseException as error:  # PanicException of Rust code is no Exception
        return f"{type(error).__name__}: {str(error)[:300]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


# ------------------------------------------------------------------------------------------------ changing
def changed_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, inserted, removed, doubled or cut off."""
    raw = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at, kind = rng.randrange(len(raw) + 1), rng.randrange(7)
        if kind == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            raw[at : at + 1] = bytes([rng.choice(EDGES)])
        elif kind == 2 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            number = rng.choice(NUMBERS)
            raw[at : at + len(number)] = number
        elif kind == 4:
            raw[at:at] = raw[rng.randrange(len(raw) + 1) :][: rng.randrange(1, 40)]
        elif kind == 5:
            del raw[at : at + rng.choice([1, 2, 4, 8, 40])]
        elif rng.random() < 0.2:
            del raw[at:]
    return bytes(raw)


def changed_json(document, rng: random.Random):
    """One value of a JSON document replaced, removed or moved to another key."""
    document = copy.deepcopy(document)
    nodes: list = [document]
    for node in nodes:
        nodes += [child for child in (node.values() if isinstance(node, dict) else node) if isinstance(child, dict | list)]
    node = rng.choice([node for node in nodes if node] or [document])
    if not node:
        return rng.choice(VALUES)
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(["", "type", "\x00", str(key) + "x"])] = node.pop(key)
    elif kind == 2:
        node[key] = [node[key]]
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))
    return document


def changed(name: str, raw: bytes, rng: random.Random) -> bytes:
    """A changed file; half of the changes keep the container sound, so that what lies in it is reached."""
    if rng.random() < 0.5:
        return changed_bytes(raw, rng)
    if name.endswith(".json"):
        document = json.loads(raw)
        for _ in range(rng.choice([1, 1, 2, 4])):
            document = changed_json(document, rng)
        return json.dumps(document).encode()
    if name.endswith(".safetensors"):
        size = int.from_bytes(raw[:8], "little")
        header = json.dumps(changed_json(json.loads(raw[8 : 8 + size]), rng)).encode()
        return len(header).to_bytes(8, "little") + header + raw[8 + size :]
    if raw.startswith(b"PK"):  # one record changed, with a right checksum
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(raw)) as before, zipfile.ZipFile(buffer, "w") as after:
            chosen = rng.choice(before.namelist())
            for record in before.namelist():
                inside = before.read(record)
                after.writestr(zipfile.ZipInfo(record), changed_bytes(inside, rng) if record == chosen else inside)
        return buffer.getvalue()
    return changed_bytes(raw, rng)


# ------------------------------------------------------------------------------------------------ the run
def run(seconds: float, seed: int, out: pathlib.Path, targets: list[str]) -> tuple[int, list[str]]:
    """(files read, faults). Files take turns, so that each target gets its share."""
    rng, found, count = random.Random(seed), [], 0
    corpus = {file.name: file.read_bytes() for file in sorted(CORPUS.iterdir()) if file.name.split("-")[0] in targets}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as place:
        while time.monotonic() < deadline:
            for name, raw in corpus.items():
                path = pathlib.Path(place, name)
                path.write_bytes(changed(name, raw, rng))
                fault, count = fault_of(path), count + 1
                if fault is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    target, suffix = name.split("-")[0], path.suffix
                    kept = out / f"{target}-{len(found):03d}{suffix}"
                    shutil.copy(path, kept)
                    found.append(f"{kept}: {fault}")
                path.unlink()
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("fuzz_found"))
    parser.add_argument("--targets", nargs="*", default=sorted(TARGETS), choices=sorted(TARGETS))
    parser.add_argument("--replay", nargs="*", type=pathlib.Path, help="read these files as they are")
    args = parser.parse_args()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    if args.replay is not None:
        with tempfile.TemporaryDirectory() as place:
            found = [f"{file}: {fault}" for file in args.replay if (fault := fault_of(pathlib.Path(shutil.copy(file, place))))]
        count = len(args.replay)
    else:
        count, found = run(args.seconds, args.seed, args.out, args.targets)
    json.dump({"files": count, "faults": found}, sys.stdout)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

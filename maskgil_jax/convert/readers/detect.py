"""`read(path)`: the named arrays of any weight file people publish, without torch and without running anything from the
file.

The format is detected from the first bytes, not from the name. PyTorch's zip and legacy containers, safetensors, .npz,
flax msgpack and folders of shards give the same `Checkpoint`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from .bounded_text import MAX_JSON, parse_json
from .checkpoint import BadWeightFile, Checkpoint, Entry, MappedFile, Problem, sanitize, strip_all, strip_wrappers
from .msgpack_file import open_msgpack
from .npz_file import open_npz
from .safetensors_file import open_safetensors
from .torch_file import BARE_PICKLE, open_legacy, open_zip
from .torch_state import state_dict_of
from .zip_archive import read_directory

_OTHER_KINDS = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a rar archive; unpack it first",
    b"GGUF": "a GGUF file, which holds quantised weights; take the safetensors or PyTorch file instead",
    b"\x89HDF": "an HDF5 file (Keras?), which is not supported",
    b"\x93NUMPY": "a single .npy array without a name; save named arrays with numpy.savez",
    b"PK\x05\x06": "an empty zip file",
}


def read(path: str | os.PathLike, *, container: str | None = None, verify: bool = False) -> Checkpoint:
    """Opens a weight file or a folder of shards. Arrays are read when they are indexed, as views of the mapped file.

    container: which outer key to take, dotted if it lies deeper ("model", "bare", "state.generator"); None takes the
    first of `torch_state.CONTAINERS` that holds tensors (flax msgpack: "ema_params", "params"). verify: reads
    everything now and compares checksums. Prefixes that training wrappers add to names are stripped
    (`Checkpoint.wrappers`).
    Raises: BadWeightFile (a ValueError) that names the file and lists all its problems. Nothing in the file is ever
    run.
    """
    path = os.fspath(path)
    try:
        kind = _kind(path)
        if kind in ("folder", "index"):
            checkpoint, problems = _open_sharded(path, container, kind)
        else:
            checkpoint, problems = _open_file(MappedFile(path), kind, container)
        problems += strip_all(checkpoint)
    except OSError as error:
        raise BadWeightFile(path, [f"cannot be read ({error.strerror or error})"]) from None
    except Problem as problem:
        raise BadWeightFile(path, [str(problem)]) from None
    if not problems and not len(checkpoint):
        problems = ["holds no arrays"]
    if problems:
        raise BadWeightFile(path, problems)
    if verify:
        checkpoint.verify()
    return checkpoint


def _kind(path: str) -> str:
    """The format of the file, from its first bytes.

    Raises: Problem that names what it is instead, where it is not weights.
    """
    if "\0" in path or not os.path.lexists(path):
        raise Problem("no such file or folder")
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise Problem("is not an ordinary file")
    with open(path, "rb") as file:
        head = file.read(512)
    size = os.path.getsize(path)
    if not head:
        raise Problem("is empty (0 bytes); the download did not finish")
    if head.startswith(b"version https://git-lfs"):
        raise Problem("is a Git LFS pointer, not the weights; run: git lfs pull")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise Problem("is a web page (HTML or XML), not weights; the link gave an error page, download it again in a browser")
    for start, sentence in _OTHER_KINDS.items():
        if head.startswith(start):
            raise Problem(f"is {sentence}")
    if head[257:262] == b"ustar":
        raise Problem("is a tar archive; unpack it first (PyTorch before 0.2 wrote these: save it again with a newer one)")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if path.endswith(".safetensors") or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size):
        return "safetensors"
    if head[0] == 0x80:
        return "pickle"
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return "msgpack"
    if head.lstrip()[:1] == b"{":
        return "index"
    if size <= 4096 and all(byte >= 32 or byte in b"\t\r\n" for byte in head) and head[-1:] != b".":
        raise Problem(f"is a short text, not weights: {sanitize(head.decode('utf-8', 'replace').strip(), 60)!r}")
    if head[0] in b"c(]}":
        raise Problem(BARE_PICKLE)
    raise Problem("is no kind of weight file known here (PyTorch, safetensors, npz, flax msgpack)")


def _open_file(file: MappedFile, kind: str, container: str | None) -> tuple[Checkpoint, list[str]]:
    if kind == "zip":
        records = read_directory(file)
        if records and all(name.endswith(".npy") for name in records):
            return _only_bare(open_npz(file, records), container)
        return state_dict_of(open_zip(file, records), container)
    if kind == "pickle":
        return state_dict_of(open_legacy(file), container)
    if kind == "safetensors":
        return _only_bare(open_safetensors(file), container)
    return open_msgpack(file, container)


def _only_bare(opened: tuple[Checkpoint, list[str]], container: str | None) -> tuple[Checkpoint, list[str]]:
    if container not in (None, "bare"):
        raise Problem(f"has no {sanitize(container)!r}: a {opened[0].format} file has no outer keys")
    return opened


# ------------------------------------------------------------------------------------------------ shards
def _open_sharded(path: str, container: str | None, kind: str) -> tuple[Checkpoint, list[str]]:
    """A folder with one weight file or an index, or the index itself ({"weight_map": {name: file}})."""
    folder, index = (path, _choose_in(path)) if kind == "folder" else (os.path.dirname(path), os.path.basename(path))
    if not index.endswith(".json") and kind == "folder":
        inside = os.path.join(folder, index)
        return _open_file(MappedFile(inside), _kind(inside), container)
    where = os.path.join(folder, index)
    if os.path.getsize(where) > MAX_JSON:
        raise Problem(f"{sanitize(index)} has {os.path.getsize(where)} bytes; at most {MAX_JSON >> 20} MB are accepted")
    with open(where, "rb") as file:
        about = parse_json(file.read(MAX_JSON + 1), sanitize(index))
    names = about.get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
        raise Problem(f"{sanitize(index)} is a JSON file without a weight_map, so not an index of weights")

    problems: list[str] = []
    entries: dict[str, Entry] = {}
    files, formats, checksummed = [], set(), True
    for shard in sorted(set(names.values())):
        try:
            if shard in (".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
                raise Problem("leads out of the folder")
            inside = os.path.join(folder, shard)
            opened, found = _open_file(MappedFile(inside), _weights_kind(inside), container)
        except (Problem, OSError) as problem:
            text = problem.strerror if isinstance(problem, OSError) else problem
            problems.append(f"shard {sanitize(shard)}: {text}")
            continue
        problems += [f"shard {sanitize(shard)}: {text}" for text in found]
        expected = {strip_wrappers(name)[0] for name, holder in names.items() if holder == shard}
        present = {strip_wrappers(name)[0] for name in opened}
        problems += [
            f"{sanitize(name)}: not in shard {sanitize(shard)}, where the index says" for name in sorted(expected - present)
        ]
        problems += [
            f"{sanitize(name)}: in shard {sanitize(shard)}, but the index does not say so"
            for name in sorted(present - expected)
        ]
        entries |= opened.entries
        files += opened.files
        formats.add(opened.format)
        checksummed &= opened.checksummed
    metadata = about.get("metadata")
    extras = metadata if isinstance(metadata, dict) else {}
    label = "sharded " + "/".join(sorted(formats))
    return Checkpoint(path, label, entries, files, extras=extras, checksummed=checksummed and bool(files)), problems


def _weights_kind(path: str) -> str:
    kind = _kind(path)
    if kind in ("folder", "index"):
        raise Problem("is not a weight file")
    return kind


def _choose_in(folder: str) -> str:
    """The one index or weight file of a folder."""
    names = sorted(os.listdir(folder))
    for endings in (
        (".safetensors.index.json",),
        (".bin.index.json",),
        (".safetensors",),
        (".bin", ".pt", ".pth", ".ckpt", ".npz"),
    ):
        found = [name for name in names if name.endswith(endings)]
        if len(found) > 1:
            raise Problem(f"a folder with several weight files; name one of {', '.join(sanitize(n) for n in found[:12])}")
        if found:
            return found[0]
    raise Problem("a folder without weights (no .safetensors, .bin, .pt, .pth, .ckpt, .npz or index inside)")

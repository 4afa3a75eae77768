"""`read(path)`: the named arrays of any weight file people publish, without torch and without running anything from the file.

The kind of file is told by its first bytes, not by its name. PyTorch's zip and legacy containers are read by our own
interpreter (`pickle_reader`); safetensors, .npz, flax msgpack and folders of shards give the same `Checkpoint`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

from .checkpoint import BadWeightFile, Checkpoint, Entry, MappedFile, Problem, shown, strip_all, strip_prefixes
from .flax_msgpack import open_msgpack
from .pickle_reader import Global, Opaque, describe
from .torch_archives import BARE_PICKLE, Archive, Tensor, open_legacy, open_zip
from .weight_files import MAX_JSON, open_npz, open_safetensors, parse_json
from .zip_records import read_directory

# The outer keys of published checkpoints, first choice first; "bare" means that the names stand at the top.
CONTAINERS = ("ema", "model", "module", "state_dict", "model_state_dict")

_NOT_EXTRAS = ("optimizer", "lr_schedulers", "callbacks", "loops")  # a trainer's own state, of no use for the network

_MAX_NODES = 20_000  # values looked at when describing what lies beside the weights
_MAX_CLAIM = 4  # arrays may claim this many times the file's bytes together (tied weights share theirs)
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
    """Opens a weight file or a folder of shards; arrays are read (as views of the mapped file) when they are asked for.

    container: which outer key to take, dotted if it lies deeper ("model", "bare", "state.generator"); None takes the first of
    `CONTAINERS` that holds tensors (flax msgpack: "ema_params", "params"). verify: read everything now, comparing checksums.
    Prefixes "module." and "_orig_mod." are stripped from names.
    Raises: BadWeightFile (a ValueError) that names the file and lists all its problems. Nothing in the file is ever run.
    """
    path = os.fspath(path)
    try:
        kind = _kind(path)
        if kind in ("folder", "index"):
            checkpoint, problems = _open_sharded(path, container, kind)
        else:
            checkpoint, problems = _open_file(MappedFile(path), kind, container)
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
    """What the file is, from its first bytes. Raises: Problem with a sentence for everything that is not weights."""
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
        raise Problem(f"is a short text, not weights: {shown(head.decode('utf-8', 'replace').strip(), 60)!r}")
    if head[0] in b"c(]}":
        raise Problem(BARE_PICKLE)
    raise Problem("is no kind of weight file known here (PyTorch, safetensors, npz, flax msgpack)")


def _open_file(file: MappedFile, kind: str, container: str | None) -> tuple[Checkpoint, list[str]]:
    if kind == "zip":
        records = read_directory(file)
        if records and all(name.endswith(".npy") for name in records):
            return _only_bare(open_npz(file, records), container)
        return _pick(open_zip(file, records), container)
    if kind == "pickle":
        return _pick(open_legacy(file), container)
    if kind == "safetensors":
        return _only_bare(open_safetensors(file), container)
    return open_msgpack(file, container)


def _only_bare(opened: tuple[Checkpoint, list[str]], container: str | None) -> tuple[Checkpoint, list[str]]:
    if container not in (None, "bare"):
        raise Problem(f"has no {shown(container)!r}: a {opened[0].format} file has no outer keys")
    return opened


# ------------------------------------------------------------------------------------------------ PyTorch: outer keys
def _pick(archive: Archive, container: str | None) -> tuple[Checkpoint, list[str]]:
    """Takes the weights out of the unpickled tree and says what was left out."""
    tree = archive.tree
    if isinstance(tree, Tensor):
        raise Problem("holds one tensor without a name, not a dict of weights")
    if isinstance(tree, Opaque):
        raise Problem(f"holds a whole {describe(tree)} object, which only its own code could rebuild; save its state_dict()")
    if type(tree) is not dict:
        raise Problem(f"holds a {describe(tree)}, not a dict of weights")
    containers = tuple(name for name in CONTAINERS if _holds_tensors(tree.get(name)))
    containers = containers or ("bare",)
    container = containers[0] if container is None else container
    weights: Any = tree
    for part in container.split(".") if container != "bare" else ():
        weights = weights.get(part) if type(weights) is dict else None
    if not _holds_tensors(weights) and not (
        container == "bare" and any(isinstance(v, (Opaque, Global)) for v in tree.values())
    ):
        held = ", ".join(f"{shown(key)} ({_summary(value)})" for key, value in list(tree.items())[:12])
        missing = "no tensors at its top" if container == "bare" else f"no tensors under {shown(container)!r}"
        raise Problem(f"has {missing}; it holds {held or 'nothing'}; choose one of its keys as the container")

    entries, problems = {}, []
    for name, value in weights.items():
        try:
            if not isinstance(name, str):
                raise Problem("its name is not a text")
            entries[name] = archive.entry(value) if isinstance(value, Tensor) else _refuse(value)
        except Problem as problem:
            problems.append(f"{shown(name) if isinstance(name, str) else describe(name)}: {problem}")
    entries, twice = strip_all(entries)
    claimed = sum(entry.nbytes for entry in entries.values())
    if claimed > _MAX_CLAIM * archive.file.size:
        twice.append(f"its tensors claim {claimed} bytes together, the file has {archive.file.size}")

    ignored, extras = {}, {}
    outer = container.split(".")[0]
    for key, value in tree.items() if weights is not tree else ():
        if key == outer or not isinstance(key, str):
            continue
        plain = _plain(value, [_MAX_NODES])
        if plain is not _NOTHING and not key.startswith(_NOT_EXTRAS):
            extras[key] = plain
        if isinstance(value, (dict, list, tuple, Tensor, Opaque)):
            ignored[key] = _summary(value)
    file = archive.file
    done = Checkpoint(file.path, archive.format, entries, [file], container, containers, ignored, extras, archive.checksummed)
    return done, problems + twice


def _refuse(value: Any) -> Entry:
    if isinstance(value, (Opaque, Global)):
        raise Problem(f"is a {describe(value)} object, not a tensor. Nothing was run")
    raise Problem(f"is a {describe(value)}, not a tensor")


def _holds_tensors(value: Any) -> bool:
    return type(value) is dict and any(isinstance(v, Tensor) for v in value.values())


def _summary(value: Any) -> str:
    """What a skipped value is, with the number of tensors inside it (up to a point: trees can refer to themselves)."""
    if isinstance(value, Tensor):
        return "tensor"
    if type(value) not in (dict, list, tuple):
        return describe(value)
    tensors, seen, waiting = 0, set(), [value]
    while waiting and len(seen) < _MAX_NODES:
        item = waiting.pop()
        if isinstance(item, Tensor):
            tensors += 1
        elif type(item) in (dict, list, tuple) and id(item) not in seen:
            seen.add(id(item))
            inside = item.values() if type(item) is dict else item
            waiting.extend(v for v in inside if isinstance(v, Tensor) or type(v) in (dict, list, tuple))
    return describe(value) + (f" with {tensors} tensors" if tensors else "")


_NOTHING = object()


def _plain(value: Any, budget: list[int], depth: int = 0) -> Any:
    """Numbers, texts, lists and dicts only; a skipped object gives the dict of its attributes. `_NOTHING` if none is left."""
    budget[0] -= 1
    if budget[0] < 0 or depth > 12:
        return _NOTHING
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Opaque):
        state = value.state
        if type(state) is dict and len(state) <= _MAX_NODES:  # OmegaConf wraps values in _content (dicts, lists) and _val
            state = state.get("_content", state.get("_val", state))
        return _plain(state, budget, depth + 1) if state is not None else _NOTHING
    if type(value) is dict:
        pairs = [(k, _plain(v, budget, depth + 1)) for k, v in _first(value.items(), budget) if type(k) in (str, int)]
        kept = {k: v for k, v in pairs if v is not _NOTHING}
        return kept if kept or not value else _NOTHING
    if type(value) in (list, tuple):
        items = [v for v in (_plain(v, budget, depth + 1) for v in _first(value, budget)) if v is not _NOTHING]
        return items if items or not value else _NOTHING
    return _NOTHING


def _first(values: Any, budget: list[int]) -> list:
    return [value for value, _ in zip(values, range(max(0, budget[0])), strict=False)]


# ------------------------------------------------------------------------------------------------ shards
def _open_sharded(path: str, container: str | None, kind: str) -> tuple[Checkpoint, list[str]]:
    """A folder with one weight file or an index, or the index itself ({"weight_map": {name: file}})."""
    folder, index = (path, _choose_in(path)) if kind == "folder" else (os.path.dirname(path), os.path.basename(path))
    if not index.endswith(".json") and kind == "folder":
        inside = os.path.join(folder, index)
        return _open_file(MappedFile(inside), _kind(inside), container)
    where = os.path.join(folder, index)
    if os.path.getsize(where) > MAX_JSON:
        raise Problem(f"{shown(index)} has {os.path.getsize(where)} bytes; at most {MAX_JSON >> 20} MB are accepted")
    with open(where, "rb") as file:
        about = parse_json(file.read(MAX_JSON + 1), shown(index))
    names = about.get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(v, str) for v in names.values()):
        raise Problem(f"{shown(index)} is a JSON file without a weight_map, so not an index of weights")

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
            problems.append(f"shard {shown(shard)}: {text}")
            continue
        problems += [f"shard {shown(shard)}: {text}" for text in found]
        wanted = {strip_prefixes(name) for name, holder in names.items() if holder == shard}
        problems += [
            f"{shown(name)}: not in shard {shown(shard)}, where the index says" for name in sorted(wanted - set(opened))
        ]
        problems += [
            f"{shown(name)}: in shard {shown(shard)}, but the index does not say so" for name in sorted(set(opened) - wanted)
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
            raise Problem(f"a folder with several weight files; name one of {', '.join(shown(n) for n in found[:12])}")
        if found:
            return found[0]
    raise Problem("a folder without weights (no .safetensors, .bin, .pt, .pth, .ckpt, .npz or index inside)")

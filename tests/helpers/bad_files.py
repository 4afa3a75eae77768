"""Weight files that must be refused, and what their refusal must say.

`build(folder, marker)` writes every file into `folder` and returns one `Case` each. The hostile ones would create
`marker`.
"""

import dataclasses
import functools
import json
import pathlib
import pickle
import struct

import numpy as np

from helpers.file_assembler import (
    FOUR,
    about,
    call,
    deflate_bomb,
    directory_field,
    flipped,
    group,
    legacy,
    mapping,
    message_array,
    named,
    npy,
    npz,
    number,
    safetensors,
    storage,
    tensor,
    tensor_v3,
    text,
    torch_zip,
    with_last_record_as,
    zip_claiming,
    zipped,
)

F4 = "{'descr': '<f4', 'fortran_order': False, 'shape': "  # of an .npy header
SYSTEM = ("posix", "system")


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad file and what its refusal must say (every fragment, in the first line)."""

    name: str
    path: str
    says: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ the cases
def hostile(command: str) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Files that would run `command` if any of their names were imported and called."""
    run = text(command)
    shell = call(*SYSTEM, run)
    source = text(f"__import__('os').system({command!r})")
    inert = "Nothing was run"
    old = f"cos\nsystem\n(S{command!r}\ntR.".encode()
    opened = b"(" + text("/bin/sh") + text("-c") + run + b"tcsubprocess\nPopen\n"

    class Runs:
        def __reduce__(self):
            return eval, (f"__import__('os').system({command!r})",)

    stacked = text("os") + text("system") + b"\x93"
    built = named("os", "environ") + mapping(__class__=shell) + b"b"
    typed = call("torch._tensor", "_rebuild_from_type_v2", named(*SYSTEM), run, group(run), b"}")
    objects = np.array([Runs()], dtype=object)
    return {
        "system.pt": (torch_zip(mapping(w=tensor(), x=shell)), ("x: is a posix.system object", inert)),
        "system_in_model.pt": (torch_zip(mapping(model=mapping(w=tensor(), x=shell))), ("x: is a posix.system object", inert)),
        "eval.pt": (torch_zip(mapping(w=call("builtins", "eval", source))), ("w: is a builtins.eval object", inert)),
        "exec_new.pt": (torch_zip(mapping(w=named("builtins", "exec") + group(source) + b"\x81")), ("builtins.exec", inert)),
        "stack_global.pt": (torch_zip(mapping(w=stacked + group(run) + b"R")), ("w: is a os.system object", inert)),
        "build.pt": (torch_zip(mapping(w=built)), ("w: is a os.environ object", inert)),
        "uncalled.pt": (torch_zip(mapping(w=tensor(), x=named(*SYSTEM))), ("x: is a posix.system object", inert)),
        "whole_file.pt": (torch_zip(shell), ("whole posix.system object",)),
        "whole_model.pt": (torch_zip(named("models", "GPT") + b")\x81}b"), ("whole models.GPT object", "state_dict()")),
        "in_storage.pt": (torch_zip(mapping(w=tensor(held=shell))), ("w: a tensor without a storage",)),
        "in_offset.pt": (torch_zip(mapping(w=tensor(shape=(shell,)))), ("w: a tensor with the impossible shape posix.system",)),
        "in_dtype.pt": (torch_zip(mapping(w=tensor_v3(shell))), ("w: a tensor of the unsupported type posix.system",)),
        "in_key.pt": (torch_zip(b"}(" + text("w") + tensor() + shell + b"Nu"), ("posix.system: its name is not a text",)),
        "in_type.pt": (torch_zip(mapping(w=typed)), ("w: is a tensor of class str object", inert)),
        "legacy_system.pt": (legacy(mapping(w=tensor(), x=shell)), ("x: is a posix.system object", inert)),
        "bare_pickle.pt": (pickle.dumps(Runs(), protocol=4), ("bare pickle", "can run code")),
        "bare_pickle_2.pth": (pickle.dumps({"w": Runs()}, protocol=2), ("bare pickle", "can run code")),
        "bare_pickle_0.ckpt": (old, ("bare pickle", "can run code")),
        "inst.pt": (torch_zip(b"(" + run + b"ios\nsystem\n"), ("instruction b'i'", "not one torch.save writes")),
        "obj.pt": (torch_zip(b"(" + named(*SYSTEM) + run + b"o"), ("instruction b'o'",)),
        "extension.pt": (torch_zip(b"\x82\x01"), ("instruction b'\\x82'",)),
        "popen.pt": (torch_zip(opened + b"R"), ("calls something with subprocess.Popen for arguments",)),
        "torchscript.pt": (torch_zip(mapping(w=tensor()), more={"a/code/__torch__.py": b"1"}), ("TorchScript", "holds code")),
        "objects.npz": (npz(w=objects), ("w.npy: holds Python objects", "can run code")),
    }  # fmt: skip


@functools.cache
def bombs() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Small files that would cost much memory or time."""
    good = mapping(w=tensor())
    tower = b")" + b"2\x86" * 60  # (), ((), ()), ... : 2 ** 60 leaves when hashed or printed
    listed = b"](" + b"))\x86" * 30_000 + b"eq\x00"
    typed = (
        named("torch._tensor", "_rebuild_from_type_v2")
        + b"q\x010"
        + named("torch.nn.parameter", "Parameter")
        + b"q\x020)q\x030"
    )
    nested_types = typed + b"(h\x01h\x02h\x03}tq\x030" * 5000 + b"h\x01h\x03R"  # a call in the arguments of a call in ...
    copies = listed + b"0" + (named("collections", "OrderedDict") + b"h\x00\x85R0") * 5_000
    same_hash = b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(60_000)) + b"u"
    spread = b"".join(text(f"w{i}") + tensor(shape=(1 << 18,), held=storage(count=1 << 18)) for i in range(200))
    return {
        "deflated_2gib.pt": (zip_claiming("a/data.pkl", deflate_bomb(2 << 30), (2 << 30) - 1), ("a/data.pkl is compressed",)),
        "deflated_record.pt": (torch_zip(good, {"0": FOUR}, packed=("a/data/0",)), ("w: record a/data/0 is compressed",)),
        "deflated_index.pt": (torch_zip(good, packed=("a/data.pkl",)), ("record a/data.pkl is compressed",)),
        "instructions.pt": (torch_zip(b"N0" * 600_000 + good), ("more than 1000000 instructions",)),
        "lists.pt": (torch_zip(b"](" + b"]" * 1_100_000 + b"e"), ("more than 1000000 instructions",)),
        "marks.pt": (torch_zip(b"(" * 500_000), ("nested more than 256 deep",)),
        "memo.pt": (torch_zip(b"Nr\xff\xff\xff\xff"), ("numbers a value 4294967295",)),
        "memo_many.pt": (torch_zip(b"}" + b"]\x940" * 400_000), ("more than 1000000 instructions",)),
        "nested_lists.pt": (torch_zip(mapping(w=tensor(), x=b"]" * 300_000 + b"a" * 299_999)), ("x: is a list of 1",)),
        "tuple_tower.pt": (torch_zip(mapping(w=tensor(), x=tower)), ("x: is a tuple of 2",)),
        "tower_key.pt": (torch_zip(b"}(" + text("w") + tensor() + tower + b"Nu"), ("tuple of 2: its name is not a text",)),
        "copies.pt": (torch_zip(copies + good), ("more than 1000000 instructions",)),
        "nested_types.pt": (torch_zip(mapping(w=tensor(), x=nested_types)), ("x: is a tensor of class",)),
        "same_hash.pt": (torch_zip(mapping(w=tensor(), x=same_hash)), ("x: is a dict of 60000",)),
        "itself.pt": (torch_zip(b"]q\x00(" + b"h\x00" * 1000 + b"e"), ("holds a list of 1000",)),
        "texts.pt": (torch_zip(b"](" + text("\U0001f600" + "x" * 1_000_000) * 20 + b"e"), ("more than 16 MB of text",)),
        "long_number.pt": (torch_zip(b"\x8b\xff\xff\xff\x7f"), ("whole number of 2147483647 bytes",)),
        "long_text.pt": (torch_zip(b"X\xff\xff\xff\xff"), ("pickle ends too early",)),
        "stride_zero.pt": (torch_zip(mapping(w=tensor((10**6, 10**6), (0, 0)))), ("w: tensor of shape", "reaches outside")),
        "shared_storage.pt": (torch_zip(b"}(" + spread + b"u", {"0": bytes(1 << 20)}), ("its tensors claim 209715200 bytes",)),
        "unpacks.npz": (zip_claiming("w.npy", deflate_bomb(1 << 30), 1 << 30), ("unpacks to 1073741824",)),
        "claims.npz": (zipped(w__npy=npy(F4 + "(1099511627776,)}")), ("w.npy: has shape",)),
        "header.safetensors": (safetensors(b"{" + b" " * 12_000_000 + b"}"), ("header claims 12000002 bytes", "10 MB")),
        "brackets.safetensors": (safetensors(b'{"w":[' + b"[]," * 3_000_000 + b"[]]}"), ("more than 200000 lists",)),
        "deep.safetensors": (safetensors(b'{"w":' + b"[" * 150_000 + b"]" * 150_000 + b"}"), ("nested too deep",)),
        "array.msgpack": (b"\x81\xa1w\xdd\xff\xff\xff\xff", ("end too early",)),
        "nested.msgpack": (b"\x81\xa1w" * 100_000, ("32 levels",)),
        "values.msgpack": (b"\x81\xa1w\xdd\x00\x0f\x00\x00" + b"\xc0" * 0xF0000, ("more than 500000 values",)),
    }  # fmt: skip


def damaged_zips() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Zip containers that are broken or lie about themselves."""
    good = torch_zip(mapping(w=tensor()))
    twice = torch_zip(mapping(w=tensor()), {"0": FOUR, "1": FOUR})
    end = len(good) - 22
    return {
        "half.pt": (good[: len(good) // 2], ("not a whole zip file", "cut short")),
        "no_end.pt": (good[:-1], ("not a whole zip file", "cut short")),
        "flipped_weight.pt": (flipped(good, FOUR), ("w: record a/data/0 is corrupt (CRC-32 does not match)",)),
        "flipped_index.pt": (flipped(good, b"FloatStorage"), ("record a/data.pkl is corrupt (CRC-32",)),
        "twice.pt": (with_last_record_as(twice, b"a/data/1", b"a/data/0"), ("record a/data/0 is in the zip file twice",)),
        "climbs.pt": (torch_zip(mapping(w=tensor()), more={"../../etc/x": b"1"}), ("../../etc/x has an unsafe name",)),
        "absolute.pt": (torch_zip(mapping(w=tensor()), more={"/etc/x": b"1"}), ("/etc/x has an unsafe name",)),
        "backslash.pt": (with_last_record_as(good, b"a/data/0", b"a\\..\\..0"), ("unsafe name",)),
        "overlap.pt": (directory_field(twice, 20, struct.pack("<LL", 200, 200), entry=0), ("overlap",)),
        "encrypted.pt": (directory_field(good, 8, b"\x01\x00"), ("record a/data/0 is encrypted",)),
        "two_names.pt": (directory_field(good, 46, b"a/data/9"), ("a/data/9 is described in two different ways",)),
        "elsewhere.pt": (directory_field(good, 42, struct.pack("<L", 7)), ("does not begin where",)),
        "past_end.pt": (directory_field(good, 20, struct.pack("<LL", 9999, 9999)), ("reaches past the end",)),
        "no_wide_size.pt": (directory_field(good, 24, b"\xff\xff\xff\xff"), ("has no 64-bit size",)),
        "many_records.pt": (
            good[: end + 8] + struct.pack("<HH", 60000, 60000) + good[end + 12 :],
            ("table of contents", "damaged"),
        ),
        "missing_record.pt": (torch_zip(mapping(w=tensor()), {}), ("w: record data/0 is missing",)),
        "size_lies.pt": (
            torch_zip(mapping(w=tensor()), {"0": FOUR * 2}),
            ("w: record a/data/0 holds 32 bytes, its index says 16",),
        ),
        "big_endian.pt": (torch_zip(mapping(w=tensor()), more={"a/byteorder": b"big"}), ("big-endian",)),
        "not_torch.pt": (zipped(readme__txt=b"hello"), ("not one that torch.save wrote",)),
        "no_records.pt": (b"PK\x05\x06" + bytes(18), ("empty zip file",)),
    }


def bad_tensors() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Whole files whose tree is not a dict of sound tensors."""

    def one(**kwargs) -> bytes:
        return torch_zip(mapping(w=tensor(**kwargs)))

    quantised = storage(kind=("torch", "QInt8Storage"))
    nan = np.array([1, np.nan, np.inf, np.nan], "<f4").tobytes()
    sparse = call("torch._utils", "_rebuild_sparse_tensor", number(0), b")")
    outside = "reaches outside its storage of 4 values"
    return {
        "too_large.pt": (one(shape=(5,)), ("w: tensor of shape (5,)", outside)),
        "stride_out.pt": (one(shape=(2, 2), stride=(3, 1)), ("w: tensor of shape (2, 2)", outside)),
        "offset_out.pt": (one(offset=1), ("w: tensor", outside)),
        "offset_negative.pt": (one(offset=-1), ("w: a tensor with the impossible offset -1",)),
        "stride_negative.pt": (one(stride=(-1,)), ("w: a tensor with the impossible stride -1",)),
        "shape_negative.pt": (one(shape=(-4,)), ("w: a tensor with the impossible shape -4",)),
        "shape_huge.pt": (one(shape=(0, 2**70), stride=(1, 1)), ("w: a tensor with the impossible shape",)),
        "shape_text.pt": (one(shape=(text("4"),)), ("w: a tensor with the impossible shape str",)),
        "ranks_differ.pt": (one(shape=(2, 2)), ("w: a tensor whose shape and stride",)),
        "rank_40.pt": (one(shape=(1,) * 40, stride=(1,) * 40), ("w: a tensor with 40 dimensions",)),
        "quantised.pt": (one(held=quantised), ("w: storage 0 has the unknown type torch.QInt8Storage",)),
        "count_negative.pt": (one(held=storage(count=-4)), ("w: storage 0 claims -4 values",)),
        "count_huge.pt": (one(held=storage(count=2**60)), ("w: storage 0 claims 1152921504606846976 values",)),
        "not_storage.pt": (one(held=group(text("module"), number(1)) + b"Q"), ("w: a reference in its pickle",)),
        "dtype.pt": (torch_zip(mapping(w=tensor_v3(named("torch", "quint8")))), ("w: a tensor of the unsupported type",)),
        "sparse.pt": (torch_zip(mapping(v=tensor(), w=sparse)), ("w: is a torch._utils._rebuild_sparse_tensor object",)),
        "text_value.pt": (torch_zip(mapping(v=tensor(), w=text("hello"))), ("w: is a str, not a tensor",)),
        "three.pt": (torch_zip(mapping(u=tensor((9,)), v=text("x"), w=tensor(offset=2))), ("u: tensor", "(and 2 more)")),
        "same_name.pt": (torch_zip(mapping(**{"module.w": tensor(), "w": tensor()})), ("module.w and w are the same",)),
        "no_tensors.pt": (torch_zip(mapping(epoch=number(1))), ("no tensors at its top; it holds epoch (int)", "container")),
        "empty_dict.pt": (torch_zip(b"}"), ("no tensors", "it holds nothing")),
        "one_tensor.pt": (torch_zip(tensor()), ("one tensor without a name",)),
        "list.pt": (torch_zip(b"](" + tensor() + b"e"), ("holds a list of 1",)),
        "nan.pt": (torch_zip(mapping(w=tensor()), {"0": nan}), ("w holds 2 NaN and 1 infinite values",)),
        "underflow.pt": (torch_zip(b"R"), ("takes a value where there is none",)),
        "unopened.pt": (torch_zip(b"t"), ("closes a bracket",)),
        "bad_memo.pt": (torch_zip(b"h\x07"), ("refers to value 7",)),
        "set_on_tensor.pt": (torch_zip(tensor() + text("x") + number(1) + b"s"), ("sets items of Tensor",)),
        "append_to_number.pt": (torch_zip(number(1) + number(2) + b"a"), ("appends to int",)),
        "odd_dict.pt": (torch_zip(b"}(" + text("x") + b"u"), ("a key without a value",)),
    }  # fmt: skip


def other_formats() -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """Legacy PyTorch, safetensors, npz, msgpack, and files that are something else altogether."""
    old = mapping(w=tensor())
    w = {"w": about()}
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 281270377\n"
    message = b"\x81\xa1w" + message_array()
    return {
        "legacy_cut.pt": (legacy(old)[:-1], ("storage 0 ends behind the file", "cut short")),
        "legacy_half.pt": (legacy(old)[:150], ("too long or cut off",)),
        "legacy_count.pt": (legacy(old, counts=(5,)), ("storage 0 holds 5 values, its index says 4",)),
        "legacy_magic.pt": (legacy(old, magic=12345), ("bare pickle",)),
        "legacy_no_data.pt": (legacy(old, keys=(), counts=()), ("w: storage 0 has no data",)),
        "legacy_stray.pt": (legacy(old, keys=("0", "1"), counts=(4, 4)), ("storage 1 is in its list",)),
        "page.pt": (b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title>", ("web page",)),
        "pointer.pt": (pointer, ("Git LFS pointer", "git lfs pull")),
        "empty.pt": (b"", ("is empty (0 bytes)",)),
        "answer.pt": (b"Entry not found", ("a short text", "Entry not found")),
        "packed.pt.gz": (b"\x1f\x8b\x08" + bytes(40), ("gzip",)),
        "noise.pt": (bytes(range(7, 256)) * 20, ("no kind of weight file",)),
        "array.npy": (npy(F4 + "(4,)}"), ("single .npy array",)),
        "cut.safetensors": (safetensors(w)[:-3], ("w: ends at byte", "cut short")),
        "cut_header.safetensors": (safetensors(w)[:30], ("header claims", "cut short")),
        "short.safetensors": (b"\x01\x00", ("too short",)),
        "not_json.safetensors": (safetensors(b"{'w': 1}"), ("not valid JSON",)),
        "shape_lies.safetensors": (safetensors({"w": about(shape=(5,))}), ("w: has shape (5,) and type F32, but 16 bytes",)),
        "type.safetensors": (safetensors({"w": about(dtype="Q4_K")}), ("w: has the unknown type 'Q4_K'",)),
        "negative.safetensors": (safetensors({"w": about(shape=(-2, -2))}), ("w: its shape is not",)),
        "backwards.safetensors": (safetensors({"w": about(offsets=(16, 0))}), ("w: its data_offsets",)),
        "overlap.safetensors": (safetensors({"v": about(), "w": about()}), ("w: overlaps",)),
        "gap.safetensors": (safetensors({"w": about(offsets=(4, 20))}, FOUR + FOUR), ("w: leaves a gap of 4 bytes",)),
        "trailing.safetensors": (safetensors(w, FOUR + b"more"), ("its arrays end at byte",)),
        "twice.safetensors": (safetensors(b'{"w":1,"w":2}'), ("has the key w twice",)),
        "nothing.safetensors": (safetensors({}, b""), ("holds no arrays",)),
        "flipped.npz": (flipped(npz(w=np.arange(4, dtype="<f4")), FOUR), ("w: record w.npy is corrupt",)),
        "header.npz": (zipped(w__npy=npy("{'descr': __import__('os').abort()}")), ("w.npy: has a damaged npy header",)),
        "negative.npz": (zipped(w__npy=npy(F4 + "(-2, -2)}")), ("w.npy: has shape (-2, -2)",)),
        "text.npz": (npz(w=np.array(["a"])), ("w.npy: has type <U1",)),
        "cut.msgpack": (message[:-2], ("end too early",)),
        "trailing.msgpack": (message + b"\xc0", ("msgpack data end at byte",)),
        "size.msgpack": (b"\x81\xa1w" + message_array(b"\x91\x05"), ("w: has shape (5,) and type float32, but 16 bytes",)),
        "object.msgpack": (b"\x81\xa1w" + message_array(dtype=b"\xa6object"), ("w: has the unsupported type object",)),
        "inner.msgpack": (b"\x81\xa1w\xc7\x01\x01\x90", ("array that ends at byte", "damaged")),
        "byte.msgpack": (b"\x81\xa1w\xc1", ("byte 0xc1", "not msgpack")),
        "number_name.msgpack": (b"\x81\x01\xc0", ("use a int as a name",)),
        "config.json": (b'{"model_type": "llama"}', ("config.json is a JSON file without a weight_map",)),
    }  # fmt: skip


def folders(folder: pathlib.Path | None) -> list[Case]:
    """Folders of shards; each is written here."""
    shard = safetensors({"w": about()})
    contents = {
        "no_weights": ({"readme.txt": b"x"}, {}, ("a folder without weights",)),
        "several": ({"a.pt": b"x", "b.pt": b"x"}, {}, ("several weight files", "a.pt, b.pt")),
        "missing_shard": ({}, {"w": "m-1.safetensors"}, ("shard m-1.safetensors: No such file",)),
        "leaves": ({}, {"w": "../../../etc/passwd"}, ("shard ../../../etc/passwd: leads out of the folder",)),
        "not_there": ({"m-1.safetensors": shard}, {"w": "m-1.safetensors", "v": "m-1.safetensors"}, ("v: not in shard",)),
        "unlisted": ({"m-1.safetensors": shard, "m-2.safetensors": shard}, {"v": "m-2.safetensors"}, ("v: not in shard",)),
        "bad_shard": ({"m-1.bin": b"<html>"}, {"w": "m-1.bin"}, ("shard m-1.bin: is a web page",)),
    }
    cases = []
    for name, (files, index, says) in contents.items():
        cases.append(Case(name, f"{folder}/{name}", says))
        if folder is None:
            continue
        (folder / name).mkdir()
        if index:
            files = files | {"model.safetensors.index.json": json.dumps({"weight_map": index}).encode()}
        for file, raw in files.items():
            (folder / name / file).write_bytes(raw)
    return cases


def build(folder: pathlib.Path | None, marker: pathlib.Path) -> list[Case]:
    """Writes every bad file into `folder` (None: only lists them).

    The hostile ones would create `marker` if they ran.
    """
    cases = [Case("missing.pt", f"{folder}/missing.pt", ("no such file",))]
    for group_of_files in (hostile(f"touch {marker}"), bombs(), damaged_zips(), bad_tensors(), other_formats()):
        for name, (raw, says) in group_of_files.items():
            if folder is not None:
                (folder / name).write_bytes(raw)
            cases.append(Case(name, f"{folder}/{name}", says))
    return cases + folders(folder)

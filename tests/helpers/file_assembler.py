"""Assembles weight files byte by byte, without torch: pickle instructions, zip and legacy containers,
and other formats.

Well-formed ones and broken ones are made by the same functions, so a broken file differs from a good one in one place
only.
"""

import io
import json
import struct
import zipfile
import zlib

import numpy as np

FOUR = np.arange(4, dtype="<f4").tobytes()


# ------------------------------------------------------------------------------------------------ pickle assembler
def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + group(*arguments) + b"R"


def numbers(values) -> bytes:
    return group(*(v if isinstance(v, bytes) else number(v) for v in values))


def storage(key: str = "0", count: int = 4, kind: tuple[str, str] = ("torch", "FloatStorage")) -> bytes:
    return group(text("storage"), named(*kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(shape=(4,), stride=(1,), offset: int = 0, held: bytes | None = None) -> bytes:
    held = storage() if held is None else held
    hooks = named("collections", "OrderedDict") + b")R"
    return call("torch._utils", "_rebuild_tensor_v2", held, number(offset), numbers(shape), numbers(stride), b"\x89", hooks)


def tensor_v3(dtype: bytes) -> bytes:
    held = storage(count=16, kind=("torch.storage", "UntypedStorage"))
    return call("torch._utils", "_rebuild_tensor_v3", held, number(0), numbers((4,)), numbers((1,)), b"\x89", b"}", dtype)


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def args_of(**items: bytes) -> bytes:
    """A pickled argparse.Namespace."""
    return named("argparse", "Namespace") + b")\x81" + mapping(**items) + b"b"


def tensors_of(state: dict[str, np.ndarray]) -> tuple[bytes, dict[str, bytes]]:
    """(pickle of {name: tensor}, storages) of float32 arrays, for `torch_zip`."""
    weights, held = {}, {}
    for i, (name, array) in enumerate(state.items()):
        array = np.ascontiguousarray(array, "<f4")
        weights[name] = tensor(array.shape, [n // 4 for n in array.strides], held=storage(str(i), array.size))
        held[str(i)] = array.tobytes()
    return mapping(**weights), held


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


# ------------------------------------------------------------------------------------------------ containers
def torch_zip(body: bytes, storages: dict[str, bytes] | None = None, more: dict[str, bytes] | None = None, packed=()) -> bytes:
    """A zip checkpoint as torch.save lays it out; `body` is the pickle program of its tree."""
    records = {"a/data.pkl": program(body), "a/byteorder": b"little"}
    records |= {f"a/data/{key}": raw for key, raw in ({"0": FOUR} if storages is None else storages).items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in (records | (more or {})).items():
            method = zipfile.ZIP_DEFLATED if name in packed else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), raw, method)
    return buffer.getvalue()


def legacy(body: bytes, keys=("0",), counts=(4,), raw: bytes = FOUR, magic: int = 0x1950A86A20F9469CFC6C) -> bytes:
    """A checkpoint in the layout before PyTorch 1.6."""
    system = mapping(little_endian=b"\x88", protocol_version=number(1001))
    listed = b"](" + b"".join(text(key) for key in keys) + b"e"
    heads = b"".join(program(part) for part in (number(magic), number(1001), system, body, listed))
    return heads + b"".join(struct.pack("<q", count) + raw for count in counts)


def with_last_record_as(good: bytes, name: bytes, other: bytes) -> bytes:
    """The zip with a name replaced by another of the same length, in both of its headers."""
    assert len(name) == len(other) and good.count(name) == 2
    return good.replace(name, other)


def flipped(good: bytes, part: bytes) -> bytes:
    """One bit of `part` changed, where it first occurs."""
    at = good.index(part) + len(part) // 2
    return good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]


def directory_field(good: bytes, offset: int, raw: bytes, entry: int = -1) -> bytes:
    """The zip with some bytes of one entry of its table of contents replaced."""
    starts = [i for i in range(len(good)) if good.startswith(b"PK\x01\x02", i)]
    at = starts[entry] + offset
    return good[:at] + raw + good[at + len(raw) :]


def deflate_bomb(size: int) -> bytes:
    """A raw deflate stream of `size` zeros: one compressed mebibyte, repeated."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 20) + engine.flush()


def zip_claiming(name: str, packed: bytes, size: int) -> bytes:
    """A zip with one deflated record that claims to unpack to `size` bytes."""
    raw, crc = name.encode(), 0x12345678
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(packed), size, len(raw), 0) + raw
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(packed), size, len(raw), 0, 0, 0, 0, 0, 0) + raw
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local) + len(packed), 0)
    return local + packed + entry + end


def safetensors(header: dict | bytes, data: bytes = FOUR, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def about(shape=(4,), dtype="F32", offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(header: str, data: bytes = FOUR) -> bytes:
    raw = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + data


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, raw in files.items():
            archive.writestr(name.replace("__", "."), raw)
    return buffer.getvalue()


def message_array(shape: bytes = b"\x91\x04", data: bytes = FOUR, dtype: bytes = b"\xa7float32") -> bytes:
    inner = b"\x93" + shape + dtype + b"\xc4" + bytes([len(data)]) + data
    return b"\xc7" + bytes([len(inner), 1]) + inner


def write_torch_zip(path, arrays, container: str) -> None:
    """{container: weights} of (name, float32 array) pairs as torch.save lays it out; one array in memory at a time."""
    weights = []
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, array) in enumerate(arrays):
            array = np.ascontiguousarray(array, "<f4")
            with archive.open(zipfile.ZipInfo(f"a/data/{i}"), "w") as record:
                record.write(array.reshape(-1).view(np.uint8).data)
            strides = [stride // 4 for stride in array.strides]
            weights.append(text(name) + tensor(array.shape, strides, held=storage(str(i), array.size)))
        inner = b"}(" + b"".join(weights) + b"u"
        archive.writestr(zipfile.ZipInfo("a/data.pkl"), program(b"}(" + text(container) + inner + b"u"))
        archive.writestr(zipfile.ZipInfo("a/byteorder"), b"little")
        archive.writestr(zipfile.ZipInfo("a/version"), b"3\n")

"""Reading good weight files: values equal to what torch, numpy, safetensors and flax wrote, lazily, and what lies beside."""

import ast
import hashlib
import json
import os
import pathlib
import struct
import zipfile

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from file_assembler import FOUR, about, call, flipped, legacy, mapping, npz, number, storage, tensor, text, torch_zip
from file_assembler import safetensors as safetensors_bytes
from recipe import draw

import maskgil_jax.convert.checkpoint as checkpoint_module
from maskgil_jax.convert.checkpoint import BadWeightFile, check_finite, strip_prefixes
from maskgil_jax.convert.torch_files import read

GOLDEN = pathlib.Path(__file__).parent / "golden"
FILES = GOLDEN / "torch_files"
EXPECTED = json.loads((FILES / "expected.json").read_text())
TORCH_FILES = {
    "every_kind.pt": ("every_kind", "torch zip", "bare"),
    "every_kind_legacy.pt": ("every_kind", "torch legacy", "bare"),
    "protocol_4.pt": ("every_kind", "torch zip", "ema"),
    "modern.pt": ("modern", "torch zip", "bare"),
    "lightning.ckpt": ("lightning", "torch zip", "state_dict"),
    "current.pth": ("current", "torch zip", "model_state_dict"),
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def write(tmp_path: pathlib.Path, raw: bytes, name: str = "x.pt") -> pathlib.Path:
    path = tmp_path / name
    path.write_bytes(raw)
    return path


# ------------------------------------------------------------------------------------------------ PyTorch
@pytest.mark.parametrize("name", TORCH_FILES)
def test_equals_torch_bit_for_bit(name):
    states, format, container = TORCH_FILES[name]
    checkpoint = read(FILES / name, verify=True)
    assert (checkpoint.format, checkpoint.container) == (format, container)
    expected = {strip_prefixes(key): value for key, value in EXPECTED[states].items()}
    assert list(checkpoint) == list(expected)
    for key, (dtype, shape, sha256) in expected.items():
        assert (str(checkpoint.dtype(key)), list(checkpoint.shape(key))) == (dtype, shape), key
        array = checkpoint[key]
        assert (str(array.dtype), list(array.shape), digest(array)) == (dtype, shape, sha256), key
        assert not array.flags.writeable or not array.size
    assert checkpoint.nbytes == sum(checkpoint[key].nbytes for key in checkpoint)


def test_published_layout_equals_the_weight_recipe():
    checkpoint = read(FILES / "current.pth")
    config = json.loads((GOLDEN / "mask_transformer/img64/config.json").read_text())
    for name, array in checkpoint.items():
        np.testing.assert_array_equal(array, draw(name, array.shape, config["recipe"]))
    hashed = hashlib.sha256()
    for name in sorted(checkpoint):
        hashed.update(name.encode() + b"\0" + checkpoint[name].tobytes())
    assert hashed.hexdigest() == config["state_sha256"]
    assert checkpoint.extras == {"iter": 1234, "global_epoch": 7}


@pytest.mark.parametrize("name", TORCH_FILES)
def test_equals_torch_itself(name):
    torch = pytest.importorskip("torch")
    tree = torch.load(FILES / name, weights_only=False) if name != "lightning.ckpt" else {}
    container = TORCH_FILES[name][2]
    for key, value in (tree if container == "bare" else tree.get(container, {})).items():
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        assert np.ascontiguousarray(read(FILES / name)[key]).tobytes() == raw


def test_lightning_file_loads_and_says_what_it_left_out():
    checkpoint = read(FILES / "lightning.ckpt")
    assert list(checkpoint) == ["weight", "bias", "loss.perceptual_loss.lin0"]
    assert checkpoint.ignored == {
        "callbacks": "dict of 1 with 1 tensors",
        "optimizer_states": "list of 1 with 6 tensors",
        "hyper_parameters": "pytorch_lightning.utilities.parsing.AttributeDict",
        "config": "omegaconf.dictconfig.DictConfig",
        "args": "argparse.Namespace",
        "rng": "tensor",
    }
    assert checkpoint.extras["hyper_parameters"] == {"embed_dim": 256, "ddconfig": {"ch": 128, "ch_mult": [1, 2]}}
    assert checkpoint.extras["config"] == {"n_embed": 1024}
    assert checkpoint.extras["args"] == {"image_size": 256, "vq_model": "VQ-16", "rate": 0.1}
    assert checkpoint.extras["epoch"] == 3


def test_outer_keys_are_chosen_in_order_and_by_name(tmp_path):
    one = {name: mapping(**{name: tensor()}) for name in ("model_state_dict", "state_dict", "module", "model", "ema", "deep")}
    one["deep"] = mapping(generator=one["deep"])
    order = ["ema", "model", "module", "state_dict", "model_state_dict"]
    while order:
        path = write(tmp_path, torch_zip(mapping(**one)))
        checkpoint = read(path)
        assert checkpoint.container == order[0] and checkpoint.containers == tuple(order) and list(checkpoint) == [order[0]]
        del one[order.pop(0)]
    assert list(read(path, container="deep.generator")) == ["deep"]
    with pytest.raises(BadWeightFile, match=r"x\.pt: has no tensors under 'ema'; it holds model_state_dict \(dict of 1 with 1"):
        read(path, container="ema")
    with pytest.raises(BadWeightFile, match="has no tensors at its top"):
        read(path, container="bare")


def test_empty_ema_is_passed_over(tmp_path):
    path = write(tmp_path, torch_zip(mapping(ema=b"}", model=mapping(w=tensor()), args=b"N")))
    checkpoint = read(path)
    assert checkpoint.container == "model" and checkpoint.extras == {"ema": {}, "args": None}


def test_prefixes_are_stripped(tmp_path):
    names = ["module._orig_mod.a", "_orig_mod.module.b", "encoder._orig_mod.c", "my_module.d"]
    path = write(tmp_path, torch_zip(mapping(**{name: tensor() for name in names})))
    assert list(read(path)) == ["a", "b", "encoder.c", "my_module.d"]


def test_hostile_objects_beside_the_weights_are_inert(tmp_path):
    shell = call("posix", "system", text(f"touch {tmp_path}/ran"))
    for make in (torch_zip, legacy):
        path = write(tmp_path, make(mapping(model=mapping(w=tensor()), callbacks=shell, args=mapping(deep=shell))))
        checkpoint = read(path, verify=True)
        np.testing.assert_array_equal(checkpoint["w"], np.arange(4, dtype=np.float32))
        assert checkpoint.ignored["callbacks"] == "posix.system"
    assert not (tmp_path / "ran").exists()


def test_a_tensor_that_only_one_view_fits(tmp_path):
    """Strides along axes of length one, and zero strides within the size of the storage, are what torch itself writes."""
    body = mapping(a=tensor((1, 4), (2**47, 1)), b=tensor((2, 2), (0, 1), 2), c=tensor((), (), 3), d=tensor((0, 5), (5, 1)))
    checkpoint = read(write(tmp_path, torch_zip(body)))
    assert [checkpoint[k].tolist() for k in "abc"] == [[[0, 1, 2, 3]], [[2, 3], [2, 3]], 3.0] and checkpoint["d"].shape == (
        0,
        5,
    )


def test_nothing_is_read_until_asked(tmp_path):
    raw = torch_zip(mapping(a=tensor(), b=tensor(held=storage("1"))), {"0": FOUR, "1": b"\xff\xee\xdd\xcc" * 4})
    path = write(tmp_path, flipped(raw, b"\xff\xee\xdd\xcc" * 4))
    checkpoint = read(path)  # the damaged record is not touched yet
    np.testing.assert_array_equal(checkpoint["a"], np.arange(4, dtype=np.float32))
    with pytest.raises(BadWeightFile, match=r"x\.pt: b: record a/data/1 is corrupt"):
        checkpoint["b"]
    with pytest.raises(BadWeightFile, match="b: record"):
        read(path, verify=True)


def test_arrays_are_views_that_survive_release(tmp_path):
    checkpoint = read(FILES / "current.pth")
    array = checkpoint["tok_emb.weight"]
    before = array.copy()
    assert not array.flags.owndata
    checkpoint.release()
    np.testing.assert_array_equal(array, before)
    del checkpoint
    np.testing.assert_array_equal(array, before)


def test_all_problems_of_a_file_come_together(tmp_path):
    body = mapping(u=tensor((9,)), v=text("x"), w=tensor(offset=-1), fine=tensor(), **{f"n{i}": number(i) for i in range(40)})
    with pytest.raises(BadWeightFile) as caught:
        read(write(tmp_path, torch_zip(body)))
    assert len(caught.value.problems) == 43
    lines = str(caught.value).split("\n")
    assert lines[0].startswith(f"{tmp_path}/x.pt: u: tensor of shape (9,)") and lines[0].endswith("(and 42 more)")
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["v", "w", "n0"] and len(lines) == 20


def test_names_from_the_file_cannot_paint_the_terminal(tmp_path):
    with pytest.raises(BadWeightFile) as caught:
        read(write(tmp_path, torch_zip(mapping(w=tensor(), **{"\x1b[2J\nok" * 50: number(1)}))))
    assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(tmp_path)) + 200


def test_a_file_saved_without_checksums_is_read(tmp_path):
    raw = torch_zip(mapping(w=tensor()))
    for record in zipfile.ZipFile(write(tmp_path, raw)).infolist():
        raw = raw.replace(struct.pack("<L", record.CRC), bytes(4))
    checkpoint = read(write(tmp_path, raw), verify=True)
    assert not checkpoint.checksummed and checkpoint["w"].tolist() == [0, 1, 2, 3]


def test_wide_zip_entries(tmp_path):
    """Records behind 4 GiB have their sizes and place in a 64-bit extra field of the table of contents."""
    raw = torch_zip(mapping(w=tensor()))
    at = raw.rindex(b"PK\x01\x02")
    packed, full = struct.unpack("<LL", raw[at + 20 : at + 28])
    header = struct.unpack("<L", raw[at + 42 : at + 46])[0]
    extra = struct.pack("<HHQQQ", 1, 24, full, packed, header)
    entry = (
        raw[at : at + 20] + b"\xff" * 8 + raw[at + 28 : at + 30] + struct.pack("<H", 28) + raw[at + 32 : at + 42] + b"\xff" * 4
    )
    end = raw.index(b"PK\x05\x06")
    size, start = struct.unpack("<LL", raw[end + 12 : end + 20])
    tail = raw[end : end + 12] + struct.pack("<LL", size + 28, start) + raw[end + 20 :]
    path = write(tmp_path, raw[:at] + entry + raw[at + 46 : end] + extra + tail)
    assert read(path, verify=True)["w"].tolist() == [0, 1, 2, 3]


# ------------------------------------------------------------------------------------------------ other formats
ARRAYS = {
    "a.kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1, -2], np.int64),
    "half": np.array([0.5, 2], np.float16),
    "flag": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(7.0),
}


def assert_same(checkpoint, arrays: dict) -> None:
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        found = checkpoint[name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = ARRAYS | {"bf16": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)}
    path.write_bytes(safetensors.numpy.save({**arrays}, metadata={"format": "pt"}))
    checkpoint = read(path, verify=True)
    assert_same(checkpoint, arrays)
    assert checkpoint.extras == {"format": "pt"} and checkpoint.format == "safetensors"
    assert_same(read(path.rename(tmp_path / "renamed.bin")), arrays)  # told by its content, not by its name


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    rng = np.random.default_rng(0)
    arrays = ARRAYS | {"big": rng.normal(size=(300, 400)), "fortran": np.asfortranarray(rng.normal(size=(5, 7)))}
    save(tmp_path / "w.npz", **arrays)
    checkpoint = read(tmp_path / "w.npz", verify=True)
    assert checkpoint.format == "npz" and checkpoint.checksummed
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint[name], array, strict=True)


@pytest.mark.parametrize("chunk", [2**30, 16])
def test_flax_msgpack(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)  # 16 bytes: arrays are stored in pieces
    tree = {"encoder": {"Conv_0": {"kernel": ARRAYS["a.kernel"]}}, "codes": np.arange(9, dtype=ml_dtypes.bfloat16)}
    flat = {"encoder/Conv_0/kernel": ARRAYS["a.kernel"], "codes": tree["codes"]}
    state = {"params": tree, "step": 5, "opt_state": {"mu": {"x": np.ones(2)}}, "note": "x" * 40, "big": 2**40, "f": 0.5}
    path = tmp_path / "checkpoint"
    path.write_bytes(flax.serialization.msgpack_serialize(state))
    checkpoint = read(path, verify=True)
    assert_same(checkpoint, flat)
    assert (checkpoint.container, checkpoint.format) == ("params", "flax msgpack")
    assert checkpoint.extras == {"step": 5, "note": "x" * 40, "big": 2**40, "f": 0.5} and list(checkpoint.ignored) == [
        "opt_state"
    ]
    assert_same(read(path, container="bare"), {f"params/{k}": v for k, v in flat.items()} | {"opt_state/mu/x": np.ones(2)})
    path.write_bytes(flax.serialization.msgpack_serialize({"ema_params": tree, "params": {"z": np.ones(1)}}))
    assert read(path).container == "ema_params" and list(read(path, container="params")) == ["z"]


def test_sharded_folder(tmp_path):
    (tmp_path / "m-1.safetensors").write_bytes(safetensors_bytes({"module.a": about()}))
    (tmp_path / "m-2.bin").write_bytes(torch_zip(mapping(b=tensor())))
    index = {"metadata": {"total_size": 32}, "weight_map": {"module.a": "m-1.safetensors", "b": "m-2.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        checkpoint = read(path, verify=True)
        assert_same(checkpoint, {name: np.arange(4, dtype=np.float32) for name in "ab"})
        assert checkpoint.format == "sharded safetensors/torch zip" and checkpoint.extras == {"total_size": 32}
    (tmp_path / "model.safetensors.index.json").unlink()
    assert list(read(tmp_path)) == ["a"]  # the one safetensors file of a weights folder


# ------------------------------------------------------------------------------------------------ checks
def test_check_finite_counts(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "_CHUNK", 5)
    array = np.zeros((4, 6), np.float32)
    assert check_finite("w", array) is None
    array[0, 0] = array[3, 5] = np.nan
    array[2, 1] = -np.inf
    for view in (array, array.T, array[:, ::-1], array.astype(ml_dtypes.bfloat16), array.astype(np.float16)):
        assert check_finite("layers.3.qkv", view) == "layers.3.qkv holds 2 NaN and 1 infinite values"
    assert check_finite("w", np.array([1, 2])) is None and check_finite("w", np.zeros((0, 3), np.float32)) is None


def test_verify_lists_every_array_that_is_not_finite(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([np.nan]), b=np.ones(2), c=np.array([np.inf, 1]))
    read(path).verify()
    with pytest.raises(BadWeightFile) as caught:
        read(path).verify(finite=True)
    assert caught.value.problems == ("a holds 1 NaN and 0 infinite values", "c holds 0 NaN and 1 infinite values")


def test_files_that_cannot_be_opened(tmp_path, monkeypatch):
    path = write(tmp_path, torch_zip(mapping(w=tensor())))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadWeightFile, match=r"x\.pt: cannot be read \(Permission denied\)"):
        read(path)
    monkeypatch.undo()
    os.mkfifo(tmp_path / "pipe.pt")
    for odd, says in ((tmp_path / "pipe.pt", "not an ordinary file"), ("a\0b", "no such file")):
        with pytest.raises(BadWeightFile, match=says):
            read(odd)


GOOD = {
    "zip": lambda: torch_zip(mapping(model=mapping(w=tensor(), v=tensor((2, 2), (2, 1))), epoch=number(3))),
    "legacy": lambda: legacy(mapping(model=mapping(w=tensor(), v=tensor((2, 2), (2, 1))), epoch=number(3))),
    "safetensors": lambda: safetensors_bytes({"w": about(), "__metadata__": {"a": "b"}}),
    "msgpack": lambda: flax.serialization.msgpack_serialize({"params": {"w": ARRAYS["a.kernel"]}, "step": 1}),
    "npz": lambda: npz(w=np.arange(4, dtype="<f4"), v=np.ones((2, 3))),
    "torch": lambda: (FILES / "every_kind.pt").read_bytes(),
    "torch legacy": lambda: (FILES / "every_kind_legacy.pt").read_bytes(),
}


@pytest.mark.parametrize("kind", GOOD)
def test_random_damage_is_refused_or_read_but_never_crashes(kind, tmp_path):
    good, rng = GOOD[kind](), np.random.default_rng(1)
    path = write(tmp_path, good)
    read(path, verify=True)
    checksums = [struct.pack("<L", r.CRC) for r in zipfile.ZipFile(path).infolist()] if good.startswith(b"PK") else []
    if kind != "npz":
        for crc in checksums:  # without checksums, so that the damage reaches the reader of the index
            good = good.replace(crc, bytes(4))
    refused = 0
    for _ in range(150):
        raw = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(raw[: rng.integers(1, len(raw))] if rng.random() < 0.1 else raw)
        try:
            checkpoint = read(path, verify=True)
            assert all(checkpoint[name].shape == checkpoint.shape(name) for name in checkpoint)
        except BadWeightFile as error:
            refused += 1
            assert str(error).startswith(str(path)) and str(error).split("\n")[0].isprintable()
    assert refused > 10


def test_the_package_has_no_way_to_run_a_file():
    """No module of the readers imports pickle, torch or marshal, or calls eval, exec or compile."""
    folder = pathlib.Path(checkpoint_module.__file__).parent
    readers = "checkpoint pickle_reader zip_records torch_archives torch_files weight_files flax_msgpack".split()
    for name in readers:
        tree = ast.parse((folder / f"{name}.py").read_text())
        for node in ast.walk(tree):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {part.split(".")[0] for part in imported}
            assert not roots & {"pickle", "_pickle", "torch", "marshal", "importlib", "subprocess", "zipfile"}, name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, name

"""Reading safetensors, npz, flax msgpack and shards; damaged files of every format; readers run no code."""

import ast
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
from helpers.file_assembler import about, legacy, mapping, npz, number, tensor, torch_zip
from helpers.file_assembler import safetensors as safetensors_bytes

import maskgil_jax.convert.readers.checkpoint as checkpoint_module
from maskgil_jax.convert.readers.checkpoint import BadWeightFile, check_finite
from maskgil_jax.convert.readers.detect import read

FILES = pathlib.Path(__file__).parent / "golden" / "torch_files"
ARRAYS = {
    "a.kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1, -2], np.int64),
    "half": np.array([0.5, 2], np.float16),
    "flag": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(7.0),
}


def write(tmp_path: pathlib.Path, raw: bytes, name: str = "x.pt") -> pathlib.Path:
    path = tmp_path / name
    path.write_bytes(raw)
    return path


def assert_same(checkpoint, arrays: dict) -> None:
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        found = checkpoint[name]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_read_safetensors_equals_saved_arrays(tmp_path):
    path = tmp_path / "w.safetensors"
    arrays = ARRAYS | {"bf16": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)}
    path.write_bytes(safetensors.numpy.save({**arrays}, metadata={"format": "pt"}))
    checkpoint = read(path, verify=True)
    assert_same(checkpoint, arrays)
    assert checkpoint.extras == {"format": "pt"} and checkpoint.format == "safetensors"
    assert_same(read(path.rename(tmp_path / "renamed.bin")), arrays)  # identified by content, not by name


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_read_npz_equals_saved_arrays(tmp_path, save):
    rng = np.random.default_rng(0)
    arrays = ARRAYS | {"big": rng.normal(size=(300, 400)), "fortran": np.asfortranarray(rng.normal(size=(5, 7)))}
    save(tmp_path / "w.npz", **arrays)
    checkpoint = read(tmp_path / "w.npz", verify=True)
    assert checkpoint.format == "npz" and checkpoint.checksummed
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint[name], array, strict=True)


@pytest.mark.parametrize("chunk", [2**30, 16])
def test_read_flax_msgpack_equals_serialized_tree(tmp_path, monkeypatch, chunk):
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


def test_read_sharded_folder_joins_shards(tmp_path):
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


def test_verify_lists_every_non_finite_array(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, a=np.array([np.nan]), b=np.ones(2), c=np.array([np.inf, 1]))
    read(path).verify()
    with pytest.raises(BadWeightFile) as caught:
        read(path).verify(finite=True)
    assert caught.value.problems == ("a holds 1 NaN and 0 infinite values", "c holds 0 NaN and 1 infinite values")


def test_unreadable_files_raise_bad_weight_file(tmp_path, monkeypatch):
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
def test_randomly_damaged_files_raise_only_bad_weight_file(kind, tmp_path):
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


def test_readers_import_and_call_nothing_that_runs_code():
    """No module of the readers imports pickle, torch or marshal, or calls eval, exec or compile."""
    folder = pathlib.Path(checkpoint_module.__file__).parent
    readers = sorted(path.stem for path in folder.glob("*.py"))
    assert len(readers) >= 12
    for name in readers:
        tree = ast.parse((folder / f"{name}.py").read_text())
        for node in ast.walk(tree):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {part.split(".")[0] for part in imported}
            assert not roots & {"pickle", "_pickle", "torch", "marshal", "importlib", "subprocess"}, name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "compile", "__import__"}, name

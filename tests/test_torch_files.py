"""Reading PyTorch files: values equal those that torch wrote, arrays are read on access, other contents are named."""

import hashlib
import json
import pathlib
import struct
import zipfile

import numpy as np
import pytest
from helpers.file_assembler import FOUR, call, flipped, legacy, mapping, number, storage, tensor, text, torch_zip
from helpers.recipe import draw

from maskgil_jax.convert.readers.checkpoint import BadWeightFile, strip_wrappers
from maskgil_jax.convert.readers.detect import read

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
def test_read_equals_recorded_torch_values_bit_for_bit(name):
    states, format, container = TORCH_FILES[name]
    checkpoint = read(FILES / name, verify=True)
    assert (checkpoint.format, checkpoint.container) == (format, container)
    expected = {strip_wrappers(key)[0]: value for key, value in EXPECTED[states].items()}
    assert list(checkpoint) == list(expected)
    for key, (dtype, shape, sha256) in expected.items():
        assert (str(checkpoint.dtype(key)), list(checkpoint.shape(key))) == (dtype, shape), key
        array = checkpoint[key]
        assert (str(array.dtype), list(array.shape), digest(array)) == (dtype, shape, sha256), key
        assert not array.flags.writeable or not array.size
    assert checkpoint.nbytes == sum(checkpoint[key].nbytes for key in checkpoint)


def test_read_published_layout_equals_the_weight_recipe():
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
def test_read_equals_torch_load(name):
    torch = pytest.importorskip("torch")
    tree = torch.load(FILES / name, weights_only=False) if name != "lightning.ckpt" else {}
    container = TORCH_FILES[name][2]
    for key, value in (tree if container == "bare" else tree.get(container, {})).items():
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        assert np.ascontiguousarray(read(FILES / name)[key]).tobytes() == raw


def test_read_lightning_file_names_ignored_contents():
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


def test_containers_are_chosen_in_order_and_by_name(tmp_path):
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


def test_empty_ema_container_is_skipped(tmp_path):
    path = write(tmp_path, torch_zip(mapping(ema=b"}", model=mapping(w=tensor()), args=b"N")))
    checkpoint = read(path)
    assert checkpoint.container == "model" and checkpoint.extras == {"ema": {}, "args": None}


def test_read_strips_wrapper_prefixes(tmp_path):
    names = ["module._orig_mod.a", "_orig_mod.module.b", "encoder._orig_mod.c", "my_module.d"]
    path = write(tmp_path, torch_zip(mapping(**{name: tensor() for name in names})))
    assert list(read(path)) == ["a", "b", "encoder.c", "my_module.d"]


def test_hostile_objects_outside_the_weights_do_not_run(tmp_path):
    shell = call("posix", "system", text(f"touch {tmp_path}/ran"))
    for make in (torch_zip, legacy):
        path = write(tmp_path, make(mapping(model=mapping(w=tensor()), callbacks=shell, args=mapping(deep=shell))))
        checkpoint = read(path, verify=True)
        np.testing.assert_array_equal(checkpoint["w"], np.arange(4, dtype=np.float32))
        assert checkpoint.ignored["callbacks"] == "posix.system"
    assert not (tmp_path / "ran").exists()


def test_tensors_with_unused_and_zero_strides_are_read(tmp_path):
    """Strides along axes of length one, and zero strides within the size of the storage,
    are what torch itself writes."""
    body = mapping(a=tensor((1, 4), (2**47, 1)), b=tensor((2, 2), (0, 1), 2), c=tensor((), (), 3), d=tensor((0, 5), (5, 1)))
    checkpoint = read(write(tmp_path, torch_zip(body)))
    assert [checkpoint[k].tolist() for k in "abc"] == [[[0, 1, 2, 3]], [[2, 3], [2, 3]], 3.0] and checkpoint["d"].shape == (
        0,
        5,
    )


def test_arrays_are_read_on_access(tmp_path):
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


def test_read_reports_all_problems_of_a_file(tmp_path):
    body = mapping(u=tensor((9,)), v=text("x"), w=tensor(offset=-1), fine=tensor(), **{f"n{i}": number(i) for i in range(40)})
    with pytest.raises(BadWeightFile) as caught:
        read(write(tmp_path, torch_zip(body)))
    assert len(caught.value.problems) == 43
    lines = str(caught.value).split("\n")
    assert lines[0].startswith(f"{tmp_path}/x.pt: u: tensor of shape (9,)") and lines[0].endswith("(and 42 more)")
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["v", "w", "n0"] and len(lines) == 20


def test_errors_contain_no_control_characters_of_the_file(tmp_path):
    with pytest.raises(BadWeightFile) as caught:
        read(write(tmp_path, torch_zip(mapping(w=tensor(), **{"\x1b[2J\nok" * 50: number(1)}))))
    assert str(caught.value).isprintable() and len(str(caught.value)) < len(str(tmp_path)) + 200


def test_zip_without_checksums_is_read(tmp_path):
    raw = torch_zip(mapping(w=tensor()))
    for record in zipfile.ZipFile(write(tmp_path, raw)).infolist():
        raw = raw.replace(struct.pack("<L", record.CRC), bytes(4))
    checkpoint = read(write(tmp_path, raw), verify=True)
    assert not checkpoint.checksummed and checkpoint["w"].tolist() == [0, 1, 2, 3]


def test_zip64_entries_are_read(tmp_path):
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

"""Sharded weights folders: written in pieces, read tensor by tensor.

Missing and extra parts raise errors that name them.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskgil_jax.checkpoints import shards
from maskgil_jax.checkpoints.shards import INDEX, WHOLE, Tensors, write_tensors
from maskgil_jax.checkpoints.weights import load_generator, load_weights, save_weights
from maskgil_jax.config import LlamaConfig
from maskgil_jax.convert.main import convert, export_file
from maskgil_jax.convert.readers.detect import read
from maskgil_jax.networks import abstract_params, flatten

GPT = LlamaConfig(codebook_size=32, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=32)
LAYOUT = dict(positions="1d_shifted", class_position="last", mask_logit=True)
LIMIT = 12_000  # bytes in a shard of the tests


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), abstract_params(GPT))


@pytest.fixture
def folder(params, tmp_path):
    save_weights(tmp_path / "w", GPT, params, shard_bytes=LIMIT)
    return tmp_path / "w"


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("model*"))


def test_shards_hold_the_tensors_of_one_file(folder, params, tmp_path):
    save_weights(tmp_path / "whole", GPT, params)
    assert files(tmp_path / "whole") == [WHOLE]
    names = files(folder)
    count = len(names) - 1
    assert count > 3 and names[:-1] == [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    assert names[-1] == INDEX
    index, whole = json.loads((folder / INDEX).read_text()), load_file(tmp_path / "whole" / WHOLE)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    for name in names[:-1]:
        held = load_file(folder / name)  # each shard is a safetensors file by itself
        assert sum(array.nbytes for array in held.values()) <= LIMIT or len(held) == 1
        assert all(index["weight_map"][key] == name and np.array_equal(held[key], whole[key]) for key in held)
    assert load_weights(folder).hash == load_weights(tmp_path / "whole").hash
    assert read(folder, verify=True).keys() == whole.keys(), "and any reader of shards takes it"


def test_tensor_larger_than_a_shard_gets_its_own_file(tmp_path):
    arrays = {"a": np.ones((4, 4), np.float32), "big": np.arange(600, dtype=np.float32), "c": np.zeros(0, np.float32)}
    shapes = {name: array.shape for name, array in arrays.items()}
    pieces = [arrays["a"], arrays["big"][:100], arrays["big"][100:], arrays["c"]]
    write_tensors(tmp_path, shapes, "float32", pieces, shard_bytes=100)
    held = [set(load_file(path)) for path in sorted(tmp_path.glob("model-*"))]
    assert held == [{"a"}, {"big"}, {"c"}]
    np.testing.assert_array_equal(Tensors(tmp_path)["big"], arrays["big"])


@pytest.mark.parametrize("change", [-1, 1], ids=["one piece missing", "one piece too many"])
def test_pieces_of_wrong_size_raise(tmp_path, change):
    pieces = [np.ones(8, np.float32)] * (4 + change)
    with pytest.raises(ValueError, match=r"bytes of arrays(, expected| too many)"):
        write_tensors(tmp_path, {name: (8,) for name in "abcd"}, "float32", pieces, shard_bytes=40)


def test_tensor_values_are_read_on_access(folder, monkeypatch):
    """Opening and comparing a folder reads no value; a bad one is named when its turn comes."""
    asked = []
    get = Tensors.__getitem__
    monkeypatch.setattr(Tensors, "__getitem__", lambda self, name: asked.append(name) or get(self, name))
    tensors = Tensors(folder)
    assert asked == [] and set(tensors) == set(flatten(abstract_params(GPT)))
    tensors["norm/scale"]
    assert asked == ["norm/scale"]


def test_converted_weights_are_sharded_and_exported(tmp_path):
    """A published file -> shards -> the same numbers and the same file."""
    from helpers.gpt_weights import llama_config, published_tensors
    from helpers.recipe import draw, load_case

    config, _ = load_case("maskgil_gpt/tiny")
    cfg = llama_config(config["hparams"], dropout=0.1)
    state = {name: draw(name, t.shape, config["recipe"]) for name, t in published_tensors("maskgil", cfg).items()}
    save_file(state, tmp_path / "file.safetensors")
    for name, limit in (("one", 1 << 30), ("many", 60_000)):
        convert(tmp_path / "file.safetensors", tmp_path / name, options={"heads": cfg.heads}, shard_bytes=limit)
    assert files(tmp_path / "one") == [WHOLE] and len(files(tmp_path / "many")) > 4
    assert load_weights(tmp_path / "one").hash == load_weights(tmp_path / "many").hash
    assert load_generator(tmp_path / "many").cfg == cfg
    back = load_file(export_file(tmp_path / "many", tmp_path / "back.safetensors", "maskgil"))
    assert back.keys() == state.keys() and all(np.array_equal(back[name], state[name]) for name in state)
    state["output.weight"][0] = np.nan  # the first of our leaves that is written last says so, and nothing is left
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=r"output\.weight holds \d+ NaN"):
        convert(tmp_path / "bad.safetensors", tmp_path / "out", options={"heads": cfg.heads}, shard_bytes=60_000)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_failed_write_of_shards_leaves_old_folder(folder, params, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = []

    def full(*_):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(folder, GPT, jax.tree.map(lambda p: p + 1, params), shard_bytes=LIMIT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["w"]


# ------------------------------------------------------------------------------------------- pieces missing or too many
FIRST, SECOND = "model-00001-of-0000N.safetensors", "model-00002-of-0000N.safetensors"


def spelled(folder, name: str) -> str:
    """The name with the N of this folder's shards."""
    return name.replace("N", str(len(files(folder)) - 1))


def change_index(folder, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def without_tensor(folder, shard: str) -> str:
    path = folder / spelled(folder, shard)
    held = load_file(path)
    gone, _ = held.popitem()
    save_file(held | {"spare": np.zeros(1, np.float32)}, path)
    return gone


def doubled_key(folder) -> None:
    text = (folder / INDEX).read_text()
    line = next(line for line in text.splitlines() if "norm/scale" in line).strip().rstrip(",")
    (folder / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{{line},'))


DAMAGE = {
    "shard missing": (lambda f: (f / spelled(f, SECOND)).unlink(), rf"{INDEX}: its shard model-00002-of-\d+\S+ is missing"),
    "shard extra": (
        lambda f: shutil.copy(f / spelled(f, FIRST), f / "model-00099-of-00099.safetensors"),
        rf"{INDEX}: does not list model-00099-of-00099\.safetensors, which is in its folder",
    ),
    "shard twice": (
        lambda f: shutil.copy(f / spelled(f, FIRST), f / spelled(f, SECOND)),
        r"model-00001\S+ and again in model-00002",
    ),
    "index missing": (lambda f: (f / INDEX).unlink(), rf"{INDEX}: missing, although its folder has shards"),
    "index damaged": (lambda f: (f / INDEX).write_text("{"), rf"{INDEX}: not an index of shards"),
    "index of nothing": (lambda f: (f / INDEX).write_text("[]"), rf"{INDEX}: not an index of shards"),
    "index key twice": (doubled_key, r"not an index of shards \(the key '\w+/?\S*' is duplicated\)"),
    "index leads out": (
        lambda f: change_index(f, lambda m: m.update({"norm/scale": "../x.safetensors"})),
        r"'\.\./x\.safetensors' is not the name of a shard",
    ),
    "whole file too": (
        lambda f: shutil.copy(f / spelled(f, FIRST), f / WHOLE),
        r"holds model\.safetensors and model-00001\S+, which are the same weights twice",
    ),
    "tensor missing": (
        lambda f: change_index(f, lambda m: m.update({"gone": spelled(f, FIRST)})),
        r"gone is not in model-00001\S+, as the index says",
    ),
    "tensor extra": (lambda f: without_tensor(f, FIRST), rf"{INDEX}: does not list spare, which is in model-00001"),
    "tensor not listed": (lambda f: change_index(f, lambda m: m.pop("norm/scale")), r"does not list norm/scale, which is in"),
    "tensor elsewhere": (
        lambda f: change_index(f, lambda m: m.update({"norm/scale": spelled(f, FIRST)})),
        r"norm/scale is not in model-00001\S+, as the index says",
    ),
    "shard cut": (lambda f: (f / spelled(f, SECOND)).write_bytes(b"\x10" + bytes(20)), "00002-of-.*not a readable safetensors"),
}


@pytest.mark.parametrize("damage,message", DAMAGE.values(), ids=DAMAGE)
def test_missing_or_extra_part_raises_naming_it(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_weights(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_int8_weights_are_a_quarter_as_large_and_close(params, tmp_path):
    save_weights(tmp_path / "float", GPT, params)
    save_weights(tmp_path / "int8", GPT, params, dtype="int8", shard_bytes=LIMIT)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("float", "int8")]
    assert sizes[1] < 0.35 * sizes[0]
    loaded = flatten(load_weights(tmp_path / "int8").params)
    for name, array in flatten(params).items():
        assert loaded[name].dtype == np.float32 and loaded[name].shape == array.shape
        assert np.abs(loaded[name] - array).max() <= np.abs(array).max() / 250, name  # half a step of 127, plus float16


@pytest.mark.parametrize("change", ["missing", "misshaped"])
def test_int8_tensor_without_fitting_scales_is_named(tmp_path, change):
    codes, scales = shards.quantized(np.arange(12.0).reshape(3, 4))
    scales = {} if change == "missing" else {"a.scales": scales[..., None]}
    save_file({"a": codes, **scales}, tmp_path / WHOLE)
    with pytest.raises(ValueError, match=r"a is int8 \(3, 4\), expected a.scales to fit it, found"):
        Tensors(tmp_path)


def test_quantized_takes_the_axis_with_the_smaller_error():
    array = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    array[:, 2] *= 50  # a column of outliers: a scale per row would leave nothing of the others
    for values, shape in ((array, (1, 9)), (array.T.copy(), (9, 1))):
        codes, scales = shards.quantized(values)
        assert scales.shape == shape and codes.dtype == np.int8 and np.abs(codes).max() == 127
        steps = np.broadcast_to(scales.astype(np.float32), values.shape)
        assert (np.abs(codes * steps - values) <= 0.51 * steps + 1e-3 * np.abs(values)).all()

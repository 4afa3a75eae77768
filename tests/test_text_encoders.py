"""Text encoders against transformers' numbers (tests/golden/text), at full size by shape, and on a mesh."""

import gzip
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.text_folders import GOLDEN, KINDS, assert_near, copied, reference
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from maskgil_jax.config import ConfigError
from maskgil_jax.runtime.mesh import batch_sharding, make_mesh
from maskgil_jax.text_encoders import clip, load_clip, load_text_encoder, shardings
from maskgil_jax.text_encoders.clip_model import clip_names
from maskgil_jax.text_encoders.folder import nested
from maskgil_jax.text_encoders.load import NETWORKS


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
    with pytest.raises(ConfigError, match=r"visual_projection\.weight is missing"):
        network.image_features(pixels)


# Full-size files, by their published names and shapes.

SIZES = {  # config.json beside the listing's sizes
    "gemma_2b": {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None},
    "gemma2_2b": {"model_type": "gemma2"},
    "flan_t5_xl_encoder": {"model_type": "t5"},
    "minilm_l6": {"model_type": "bert"},
    "clip_vit_l14_text": {"model_type": "clip_text_model", "eos_token_id": 2},
}
LEFT = {
    "minilm_l6": 384 * 384 + 384,
    "flan_t5_xl_encoder": 32128 * 2048,
    "clip_vit_l14_text": 768 * 768,
}  # pooler; the table's second copy; projection


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


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_float32(kind):
    io = reference(kind)
    encoder = load_text_encoder(GOLDEN / kind, dtype="bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(encoder.params))
    found = encoder.states(io["ids"], io["mask"])
    assert_near(found, io["last"], io["mask"], rtol=0.05)
    assert np.abs(np.asarray(found) - io["last"])[io["mask"].astype(bool)].max() > 1e-4  # it was computed in bfloat16


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


def test_mesh_exchanges_states_but_gathers_neither_them_nor_the_table():
    """Looking up in a table that is split over columns must not bring every state of the batch to every device."""
    mesh, network = make_mesh(data=2, fsdp=2, tensor=2), NETWORKS["gemma2"]
    sizes = dict(num_hidden_layers=1, hidden_size=64, intermediate_size=96, vocab_size=1024, num_attention_heads=4, head_dim=16)
    cfg = network.read_config({"model_type": "gemma2", **sizes}, "config.json")
    params = nested({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, (_, shape) in network.table(cfg).items()})
    params = jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, shardings(params, mesh))
    ids = jax.ShapeDtypeStruct((8, 24), jnp.int32, sharding=batch_sharding(mesh))
    compiled = jax.jit(lambda p, ids: network.apply(p, ids, ids > 0, cfg)).lower(params, ids).compile()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", compiled.as_text())
    assert gathered and all(len(shape.split(",")) == 2 for shape in gathered)  # weights and ids
    assert not any(shape.startswith("1024,") for shape in gathered)
    assert compiled.output_shardings.spec == P(("data", "fsdp"))


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

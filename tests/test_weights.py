"""Weights folders, pipelines and checkpoints: round trips, damage, and interrupted writes."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskgil_jax.checkpoints.step_folders import steps_in
from maskgil_jax.checkpoints.train_state import CheckpointError, Checkpoints, abstract_like
from maskgil_jax.checkpoints.weights import load_generator, load_tokenizer, load_weights, save_weights
from maskgil_jax.config import ConfigError, DecodeConfig, LlamaConfig, VQConfig
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import create, flatten, params_of
from maskgil_jax.pipelines.packing import pack
from maskgil_jax.pipelines.pipeline import load
from maskgil_jax.runtime.mesh import make_mesh, shardings

VQ = VQConfig(channels=8, multipliers=(1, 2), res_blocks=1, latent_dim=8, codebook_size=32, codebook_dim=4, image_size=8)
GPT = LlamaConfig(codebook_size=32, num_classes=3, grid=(4, 4), width=32, depth=2, heads=2, mlp_width=32)
NAMES = ["cats", "dogs", "light, film & video"]


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_weights(folder / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    params = params_of(create(GPT, jax.random.key(1)))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(2), params["head"]["kernel"].shape)
    about = {"class_names": NAMES, "tokenizer_hash": load_weights(folder / "tokenizer").hash, "decode": {"steps": 4}}
    save_weights(folder / "generator", GPT, params, metadata=about)
    return folder


def copy_of(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_saved_weights_load_bit_for_bit(pipeline_folder, tmp_path):
    weights = load_weights(pipeline_folder, "generator")
    assert weights.cfg == GPT and weights.about["class_names"] == NAMES
    save_weights(tmp_path / "again", weights.cfg, weights.params)
    again = load_weights(tmp_path / "again")
    assert again.hash == weights.hash
    for name, leaf in flatten(again.params).items():
        np.testing.assert_array_equal(leaf, flatten(weights.params)[name])
    again.params["norm"]["scale"] = again.params["norm"]["scale"] + 1
    assert again.hash != weights.hash


def test_float16_weights_are_half_as_large_and_load_as_float32(pipeline_folder, tmp_path):
    weights = load_weights(pipeline_folder, "generator")
    save_weights(tmp_path / "half", weights.cfg, weights.params, dtype="float16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (tmp_path / "half", pipeline_folder / "generator")]
    assert sizes[0] < 0.6 * sizes[1]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(load_weights(tmp_path / "half").params))


def test_packed_pipeline_is_half_as_large_with_new_tokenizer_hash(pipeline_folder, tmp_path):
    pack(pipeline_folder, tmp_path / "packed")
    pipeline, packed = load(pipeline_folder), load(tmp_path / "packed")
    assert packed.class_names == pipeline.class_names and packed.cfg == pipeline.cfg
    assert packed([0, 1], seed=1).shape == (2, 8, 8, 3)
    hashes = [load_weights(f, "tokenizer").hash for f in (pipeline_folder, tmp_path / "packed")]
    assert hashes[0] != hashes[1], "rounding makes another tokenizer, and the generator must name that one"


@pytest.mark.slow
def test_public_loaders_load_their_family_only(pipeline_folder):
    tokenizer, generator = load_tokenizer(pipeline_folder), load_generator(pipeline_folder / "generator")
    codes = tokenizer.encode(jnp.zeros((1, 8, 8, 3)))
    assert codes.shape == (1, 4, 4) and codes.dtype == jnp.int32 and tokenizer.decode(codes).shape == (1, 8, 8, 3)
    assert generator(codes.reshape(1, -1), ClassCondition(jnp.zeros(1, jnp.int32)), grid=(2, 8)).shape == (1, 16, 32)
    with pytest.raises(ValueError, match="holds a vqgan, expected a generator"):
        load_generator(pipeline_folder / "tokenizer")
    with pytest.raises(ConfigError, match="nowhere: no such weights folder"):
        load_tokenizer("nowhere")


def test_pipeline_images_depend_on_seed_and_place_only(pipeline_folder):
    pipeline = load(pipeline_folder)
    assert pipeline.cfg == DecodeConfig(steps=4)
    images = pipeline(["cats", 1, "2", "light, film & video", 0], seed=3)
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(images, pipeline([0, 1, 2, 2, 0], seed=3, batch_size=2))
    assert (images != pipeline([0, 1, 2, 2, 0], seed=4)).any()
    assert (images[0] != images[4]).any(), "the same label twice gives two images"


@pytest.mark.parametrize(
    "call,message",
    [
        (dict(labels=[3]), r"3 is out of range; classes are 0\.\.2"),
        (dict(labels=[-1]), "-1 is out of range"),
        (dict(labels="dgos"), "no class is called 'dgos'; did you mean 'dogs'"),
        (dict(labels=[]), "none given"),
        (dict(labels=0, seed=-1), "seed: must be in"),
        (dict(labels=0, batch_size=0), "batch_size: must be at least 1"),
    ],
)
def test_impossible_request_raises_naming_it(pipeline_folder, call, message):
    with pytest.raises(ConfigError, match=message):
        load(pipeline_folder)(**call)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_tensor(folder):
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    flat = load_file(file)
    del flat["head/kernel"]
    save_file(flat, file)


def spoil_value(folder):
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    flat = load_file(file)
    flat["norm/scale"] = np.full_like(flat["norm/scale"], np.nan)
    save_file(flat, file)


DAMAGE = {
    "missing tensor": (drop_tensor, "model.safetensors: weights do not fit the network: missing head/kernel"),
    "nan": (spoil_value, "norm/scale holds 32 values that are not finite"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing"),
    "cut file": (lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(20)), "not a readable safetensors file"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: missing"),
    "bad json": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "other format": (lambda f: change_config(f, format="x"), "expected format 'maskgil_jax weights 1'"),
    "unknown family": (lambda f: change_config(f, family="lama"), "unknown value 'lama'.*Did you mean 'llama'"),
    "unknown option": (lambda f: change_config(f, options={"widht": 3}), "no option 'widht'; did you mean 'width'"),
    "other tokenizer": (lambda f: change_config(f, tokenizer_hash="feed"), "trained with tokenizer feed, this folder has"),
}


@pytest.mark.parametrize("damage,message", DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights_folder_raises_naming_the_part(pipeline_folder, tmp_path, damage, message):
    folder = copy_of(pipeline_folder, tmp_path)
    damage(folder / "generator")
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_failed_write_leaves_old_folder(pipeline_folder, tmp_path, monkeypatch):
    folder = copy_of(pipeline_folder, tmp_path) / "generator"
    weights = load_weights(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskgil_jax.checkpoints.shards.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(folder, weights.cfg, weights.params)
    assert load_weights(folder).hash == weights.hash
    assert sorted(p.name for p in folder.parent.iterdir()) == ["generator", "tokenizer"]


@pytest.mark.slow
def test_checkpoints_restore_on_another_mesh_and_refuse_another_run(tmp_path):
    def init(key):
        return params_of(create(GPT, key))

    meshes = [make_mesh(data=2, fsdp=2, tensor=2), make_mesh(data=1, fsdp=8)]
    layouts = [shardings(jax.eval_shape(init, jax.random.key(0)), mesh) for mesh in meshes]
    state = jax.jit(init, out_shardings=layouts[0])(jax.random.key(0))
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state, {"seed": 0}, wait=True)
    checkpoints.close()

    checkpoints = Checkpoints(tmp_path, keep=2)
    assert steps_in(tmp_path / "checkpoints") == [3, 2]
    step, restored = checkpoints.restore(abstract_like(init, jax.random.key(0), layouts[1]), {"seed": 0})
    assert step == 3
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), state, restored))
    assert restored["layers"]["mlp"]["up"]["kernel"].sharding == layouts[1]["layers"]["mlp"]["up"]["kernel"]
    with pytest.raises(CheckpointError, match="made with seed = 0, this run has 1"):
        checkpoints.restore(abstract_like(init, jax.random.key(0), layouts[1]), {"seed": 1})
    checkpoints.close()


def test_meshes_and_rules():
    with pytest.raises(ConfigError, match="data=3 x fsdp=1 x tensor=1 does not make 8 devices"):
        make_mesh(data=3)
    with pytest.raises(ConfigError, match="only one axis may be -1"):
        make_mesh(data=-1, fsdp=-1)
    mesh = make_mesh(data=1, fsdp=1, tensor=8)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 8}
    with pytest.raises(ValueError, match="no sharding rule for this array"):
        shardings({"mystery": jnp.zeros(3)}, mesh)
    with pytest.raises(ValueError, match=r"axis 1 of shape \(4, 12\) is not a multiple of mesh axis tensor=8"):
        shardings({"head": {"kernel": jnp.zeros((4, 12))}}, mesh)

"""Published pipelines by one `load`: a diffusers folder of aMUSEd, here and on the hub, and LlamaGen's text network."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.diffusers_folder import SIDE, UVIT, VQ, clip_tensors, write_folder, write_json
from helpers.fake_hub import TOKEN, running
from helpers.gpt_weights import llamagen_config, published_tensors
from helpers.text_folders import with_tokenizer
from safetensors.numpy import load_file, save_file

from maskgil_jax import cli, load
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.config import CausalConfig, ConfigError, VQConfig
from maskgil_jax.convert import published
from maskgil_jax.convert.diffusers_folder import convert_folder
from maskgil_jax.models.condition import GuidedCondition
from maskgil_jax.text_encoders import load_clip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("diffusers") / "amused-tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pipeline(source, cache):
    return load(source, cache_dir=cache)


# ------------------------------------------------------------------------------------------------ what is loaded
def test_diffusers_folder_loads_with_the_rules_of_its_scheduler(pipeline):
    cfg = pipeline.cfg
    assert (cfg.steps, cfg.schedule, cfg.plan, cfg.guidance, cfg.choice_temperature) == (
        12,
        "cosine",
        "gamma_canvas",
        10.0,
        2.0,
    )
    assert pipeline.generator.cfg == UVIT and pipeline.tokenizer.cfg == VQ


def test_prompt_condition_is_that_of_clip_and_the_null_that_of_an_empty_text(pipeline, source):
    condition = pipeline.condition(prompts=["a red cat", "a dog"])
    assert isinstance(condition, GuidedCondition)
    clip = load_clip(source / "text_encoder")
    for part, texts in ((condition.condition, ["a red cat", "a dog"]), (condition.negative, ["", ""])):
        ids = clip.tokenize(texts)
        np.testing.assert_allclose(part.features_btd, clip.text_states(ids, -2), atol=1e-5)
        np.testing.assert_allclose(part.pooled_bp, clip.text_features(ids), atol=1e-5)
        np.testing.assert_array_equal(part.micro_bm, [[SIDE, SIDE, 0, 0, 6]] * 2)


def test_negative_prompt_replaces_the_empty_text(pipeline):
    plain, other = pipeline.condition(prompts="a cat"), pipeline.condition(prompts="a cat", negative_prompts="blue")
    np.testing.assert_array_equal(other.condition.pooled_bp, plain.condition.pooled_bp)
    blue = pipeline.condition(prompts="blue").condition
    np.testing.assert_allclose(other.negative.pooled_bp, blue.pooled_bp, atol=1e-6)
    assert not np.allclose(other.negative.pooled_bp, plain.negative.pooled_bp)


@pytest.mark.slow
def test_pipeline_draws_and_images_depend_on_the_prompt(pipeline):
    images = pipeline(prompts=["a red cat", "a green dog"], seed=1, steps=3)
    assert images.shape == (2, SIDE, SIDE, 3) and images.dtype == np.uint8
    again = pipeline(prompts=["a red cat", "blue sun"], seed=1, steps=3)
    np.testing.assert_array_equal(again[0], images[0])
    assert (again[1] != images[1]).any()
    guided = pipeline(prompts="a red cat", negative_prompts="blue sun hat", seed=1, steps=3)
    assert (guided[0] != images[0]).any()


# ------------------------------------------------------------------------------------------------ editing
@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)


def watched(pipeline, monkeypatch):
    """Records (decoding options, masked tokens of each image) of what is decoded."""
    seen, tokens = [], type(pipeline).tokens

    def record(self, condition, key, *, cfg=None, tokens_bl=None, **options):
        seen.append((cfg, np.asarray(tokens_bl == UVIT.mask_id).sum(axis=1).tolist()))
        return tokens(self, condition, key, cfg=cfg, tokens_bl=tokens_bl, **options)

    monkeypatch.setattr(type(pipeline), "tokens", record)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("strength,skipped", [(0.5, 6), (0.75, 3), (0.99, 1), (1.0, 0)])
def test_variation_starts_where_the_published_pipeline_does(pipeline, images, monkeypatch, strength, skipped):
    seen = watched(pipeline, monkeypatch)
    pipeline.vary(images, prompts="a red cat", strength=strength)
    ((cfg, masked),) = seen
    assert cfg.skip_steps == skipped and cfg.plan == "gamma_canvas"
    assert masked == [round(64 * np.cos(np.pi / 2 * skipped / 12))] * 2


@pytest.mark.slow
def test_variation_of_little_strength_is_the_reconstruction(pipeline, images):
    codes = pipeline.tokenizer.encode(jnp.asarray(images, jnp.float32) / 127.5 - 1)
    expected = np.clip((np.asarray(pipeline.tokenizer.decode(codes)) + 1) * 127.5, 0, 255)
    found = pipeline.vary(images, prompts="a cat", strength=0.01)
    np.testing.assert_allclose(found, expected, atol=1.01)


@pytest.mark.slow
def test_inpainting_plans_linearly_for_the_hole_and_keeps_the_rest(pipeline, images, monkeypatch):
    seen = watched(pipeline, monkeypatch)
    hole = np.zeros((SIDE, SIDE), bool)
    hole[:6, :6] = True
    options = dict(prompts=["a red cat", "a dog"], negative_prompts="blue", seed=3)
    made = pipeline.inpaint(images, hole, **options, feather=0)
    ((cfg, masked),) = seen
    assert (cfg.plan, cfg.schedule, cfg.steps) == ("gamma_floor", "linear", 12) and masked == [16, 16]
    np.testing.assert_array_equal(made[:, 6:], images[:, 6:])
    assert (made[:, :6, :6] != images[:, :6, :6]).any()
    assert (pipeline.inpaint(images, hole, **(options | {"prompts": "sun"}), feather=0) != made).any()
    assert pipeline.vary(images).shape == images.shape  # no prompt: the condition of ""


# ------------------------------------------------------------------------------------------------ cache
def test_conversion_is_made_once_and_again_if_the_cache_is_incomplete(source, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(published, "convert_folder", lambda *a, **o: made.append(1) or convert_folder(*a, **o))
    folder = published.prepared(source, tmp_path)
    assert published.prepared(source, tmp_path) == folder and len(made) == 1
    (folder / "generator" / "model.safetensors").write_bytes(b"half")
    assert published.prepared(source, tmp_path) == folder and len(made) == 2
    (folder / published.MANIFEST).unlink()
    assert published.prepared(source, tmp_path) == folder and len(made) == 3
    load_weights(folder, "generator")


def test_changed_source_is_converted_anew(tmp_path):
    source = write_folder(tmp_path / "amused")
    first = published.prepared(source, tmp_path / "cache")
    file = source / "vqvae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file)
    second = published.prepared(source, tmp_path / "cache")
    assert load_weights(first, "tokenizer").hash != load_weights(second, "tokenizer").hash


def test_other_folders_are_left_as_they_are(tmp_path):
    assert published.prepared("demo", tmp_path) == "demo"
    assert published.prepared(tmp_path, tmp_path) == tmp_path


def test_half_precision_files_are_taken_where_only_these_exist(source, tmp_path):
    half = write_folder(tmp_path / "half", variant=".fp16", dtype="float16")
    folder = published.prepared(half, tmp_path / "cache")
    assert load_file(folder / "generator" / "model.safetensors")["tokens/embedding"].dtype == np.float16
    with pytest.raises(ConfigError, match="transformer: holds no weights of variant 'bf16'"):
        load(half, cache_dir=tmp_path / "cache", variant="bf16")
    assert load(half, cache_dir=tmp_path / "cache")(prompts="a cat", steps=1).shape == (1, SIDE, SIDE, 3)


# ------------------------------------------------------------------------------------------------ convert and the hub
@pytest.mark.slow
def test_convert_command_writes_a_folder_that_can_be_moved(source, tmp_path, capsys, pipeline):
    assert cli.main(["convert", str(source), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "recognised as amused:" in printed and "OpenRAIL++-M" in printed and "model_card_licence: openrail++" in printed
    shutil.move(tmp_path / "out", tmp_path / "moved")
    about = json.loads((tmp_path / "moved" / "generator" / "config.json").read_text())
    assert about["source"]["licence"].startswith("OpenRAIL++-M") and len(about["source"]["sha256"]) == 64
    moved = load(tmp_path / "moved")(prompts="a red cat", seed=1, steps=2)
    np.testing.assert_array_equal(moved, pipeline(prompts="a red cat", seed=1, steps=2))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_hub_address_loads_with_its_revision_and_without_other_variants(hub, source, tmp_path, caplog, monkeypatch):
    files = {str(file.relative_to(source)): file.read_bytes() for file in source.rglob("*") if file.is_file()}
    part = "transformer/diffusion_pytorch_model"
    files[f"{part}.fp16.safetensors"] = b"not needed"
    hub.repos["amused/amused-512"] = {"private": False, "branches": {}, "commits": {}}
    commit = hub.commit("amused/amused-512", "main", files)
    pipeline = load("hf://amused/amused-512", cache_dir=tmp_path / "cache")
    assert pipeline(prompts="a cat", steps=1).shape == (1, SIDE, SIDE, 3)
    assert not any("fp16" in asked for asked in hub.asked)
    (folder,) = (tmp_path / "cache" / "published").iterdir()
    about = json.loads((folder / "generator" / "config.json").read_text())["source"]
    assert (about["repository"], about["revision"]) == ("amused/amused-512", commit)
    assert "OpenRAIL++-M" in caplog.text and commit in caplog.text
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there: the caches do
    assert load("hf://amused/amused-512", cache_dir=tmp_path / "cache").generator.cfg == UVIT


# ------------------------------------------------------------------------------------------------ refusals
def _move(folder, part, name, other):
    shutil.copy(folder / part / name, folder / other / name)


BROKEN = {
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), r"transformer: missing; a pipeline folder of aMUSEd has"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"tokenizer: missing"),
    "no words": (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), r"tokenizer: holds no tokenizer\.json, nor vocab"),
    "no weights": (lambda f: (f / "vqvae" / "diffusion_pytorch_model.safetensors").unlink(), r"vqvae: holds no weights"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler: missing"),
    "folders swapped": (
        lambda f: (shutil.rmtree(f / "transformer"), shutil.copytree(f / "vqvae", f / "transformer")),
        r"transformer/config\.json: _class_name is 'VQModel', expected UVit2DModel; that belongs in vqvae/",
    ),
    "weights swapped": (
        lambda f: _move(f, "vqvae", "diffusion_pytorch_model.safetensors", "transformer"),
        r"safetensors: holds amused-vq, expected amused; that belongs in vqvae/",
    ),
    "other pipeline": (
        lambda f: write_json(f / "model_index.json", {"_class_name": "StableDiffusionPipeline"}),
        r"model_index\.json: _class_name is 'StableDiffusionPipeline', expected one of AmusedPipeline",
    ),
    "no projection": (
        lambda f: save_file(
            {n: v for n, v in clip_tensors().items() if "projection" not in n}, f / "text_encoder" / "model.safetensors"
        ),
        r"text_encoder: has no text_projection\.weight",
    ),
    "other mask": (
        lambda f: write_json(f / "scheduler" / "scheduler_config.json", {"_class_name": "AmusedScheduler", "mask_token_id": 7}),
        r"scheduler: has 7 as mask_token_id, transformer/ takes 39",
    ),
    "cut weights": (
        lambda f: (f / "vqvae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
        r"vqvae/diffusion_pytorch_model\.safetensors",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_missing_or_swapped_part_is_refused_with_one_line(case, source, tmp_path):
    change, pattern = BROKEN[case]
    folder = tmp_path / "broken"
    shutil.copytree(source, folder)
    change(folder)
    with pytest.raises(ValueError, match=pattern) as caught:
        load(folder, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


# ---------------------------------------------------------------------------------------------- LlamaGen's text network
@pytest.fixture(scope="module")
def llamagen(tmp_path_factory):
    """The files of LlamaGen's folder of weights, tiny: the generator, its tokenizer and T5."""
    folder = tmp_path_factory.mktemp("pretrained_models")
    hparams = dict(dim=64, n_layer=2, n_head=1, vocab_size=16, num_classes=1, multiple_of=32, cls_token_num=12, caption_dim=32)
    cfg = llamagen_config(hparams | {"model_type": "t2i"}, (16, 16), null_text="random", caption_norm=False)
    tokenizer = VQConfig(
        channels=32, multipliers=(1, 1, 1, 1, 1), res_blocks=1, latent_dim=32, codebook_size=16, codebook_dim=8, image_size=256
    )
    rng = np.random.default_rng(0)
    for name, family, options in (("t2i_XL_stage1_256", "llamagen-t2i", cfg), ("vq_ds16_t2i", "llamagen-vq", tokenizer)):
        tensors = published_tensors(family, options)
        arrays = {key: (0.2 * rng.normal(size=tensor.shape)).astype(np.float32) for key, tensor in tensors.items()}
        save_file(arrays, folder / f"{name}.safetensors")
    with_tokenizer("t5", folder / "t5-ckpt")
    (folder / "t5-ckpt" / "t5").rename(folder / "t5-ckpt" / "flan-t5-xl")
    return folder


def test_llamagen_text_file_loads_with_its_tokenizer_and_t5(llamagen, tmp_path):
    pipeline = load(llamagen / "t2i_XL_stage1_256.safetensors", cache_dir=tmp_path)
    assert isinstance(pipeline.cfg, CausalConfig) and (pipeline.cfg.guidance, pipeline.cfg.top_k) == (7.5, 1000)
    condition = pipeline.condition(prompts=["red cat", "a"])
    mask = np.asarray(condition.mask_bt)
    assert mask[:, -1].all() and not mask[:, 0].any()  # padding on the left
    np.testing.assert_array_equal(np.asarray(condition.features_btd)[~mask], 0)
    null = pipeline.generator.null_condition(jax.tree.map(jnp.asarray, condition))
    np.testing.assert_array_equal(null.mask_bt, mask)
    np.testing.assert_array_equal(null.features_btd[0], pipeline.generator.caption_null[...])


def test_convert_command_pairs_generator_and_tokenizer(llamagen, tmp_path, capsys):
    files = [str(llamagen / f"{name}.safetensors") for name in ("t2i_XL_stage1_256", "vq_ds16_t2i")]
    encoder = str(llamagen / "t5-ckpt" / "flan-t5-xl")
    assert cli.main(["convert", files[0], str(tmp_path / "out"), "--tokenizer", files[1], "--text-encoder", encoder]) == 0
    assert f"text encoder: {encoder}" in capsys.readouterr().out
    assert load(tmp_path / "out").generator.cfg.text_tokens == 12


def test_generator_file_without_tokenizer_is_refused(llamagen, tmp_path):
    shutil.copy(llamagen / "t2i_XL_stage1_256.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="needs one tokenizer of 16 codes in its folder, found none"):
        load(tmp_path / "t2i_XL_stage1_256.safetensors", cache_dir=tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"holds LlamaGen's VQ tokenizer.* expected a generator"):
        load(llamagen / "vq_ds16_t2i.safetensors", cache_dir=tmp_path / "cache")

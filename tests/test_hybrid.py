"""Hybrid decoding: the causal network's part, the masked network's part, their seam, and how people reach it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import save_weights
from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, LlamaConfig, VQConfig, to_dict
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.decoding.hybrid import _decode_hybrid, causal_tokens, decode_hybrid, network_calls
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import build, create, fingerprint, params_of
from maskgil_jax.pipelines.pipeline import load

VQ = VQConfig(channels=8, multipliers=(1, 1, 2), res_blocks=1, latent_dim=8, codebook_size=16, codebook_dim=4, image_size=16)
OPTIONS = dict(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32)
MASKED, CAUSAL = LlamaConfig(**OPTIONS), LlamaConfig(**OPTIONS, causal=True)
DECODE, WRITE = DecodeConfig(steps=3), CausalConfig(guidance=1.5)
NAMES = ["ant", "bee", "cat"]


@functools.cache
def parameters(cfg, seed):
    params = params_of(create(cfg, jax.random.key(seed)))
    params["layers"] = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim == 3 else leaf, params["layers"])
    params["head"]["kernel"] = 0.4 * jax.random.normal(jax.random.key(seed + 9), params["head"]["kernel"].shape)
    return params


@pytest.fixture(scope="module")
def networks():
    return build(CAUSAL, parameters(CAUSAL, 1)), build(MASKED, parameters(MASKED, 2))


@pytest.fixture(scope="module")
def tokenizer():
    return params_of(create(VQ, jax.random.key(0)))


@pytest.fixture
def folders(tmp_path, tokenizer):
    """Two pipeline folders of one tokenizer: (masked, causal)."""
    about = {"class_names": NAMES, "tokenizer_hash": fingerprint(tokenizer), "image_size": 16}
    for name, cfg, decoding in (("masked", MASKED, DECODE), ("causal", CAUSAL, WRITE)):
        save_weights(tmp_path / name / "tokenizer", VQ, tokenizer)
        save_weights(tmp_path / name / "generator", cfg, parameters(cfg, 1), metadata={**about, "decode": to_dict(decoding)})
    return tmp_path / "masked", tmp_path / "causal"


def labels(*values):
    return ClassCondition(jnp.asarray(values, jnp.int32))


def test_network_calls_equal_the_paper():
    assert [network_calls(r, (16, 16), 8) for r in (0, 0.25, 0.5, 0.75, 1)] == [8, 72, 136, 200, 256]
    assert causal_tokens(0.3, (3, 3)) == 3 and network_calls(0.3, (3, 3), 20) == 23
    with pytest.raises(ConfigError, match=r"ar_ratio: must be between 0 .* got 1.5"):
        causal_tokens(1.5, (4, 4))


def test_decode_hybrid_of_ratio_zero_and_one_is_one_network_alone(networks):
    ar, masked = networks
    condition, key = labels(0, 1, 2), jax.random.key(3)
    only_masked = decode_hybrid(ar, masked, condition, key, WRITE, DECODE, 0.0)
    np.testing.assert_array_equal(only_masked, decode(masked, condition, key, DECODE))
    only_ar = decode_hybrid(ar, masked, condition, key, WRITE, DECODE, 1.0)
    np.testing.assert_array_equal(only_ar, decode_causal(ar, condition, key, WRITE))
    assert (only_ar != only_masked).any()


def test_decode_hybrid_equals_causal_then_masked(networks):
    """Against the two decoders called apart; the second plans its steps on what is left: 2 tokens in 3 steps."""
    ar, masked = networks
    condition, key, written = labels(0, 1, 2), jax.random.key(4), 14
    got = decode_hybrid(ar, masked, condition, key, WRITE, DECODE, 0.9)
    prefix = decode_causal(ar, condition, key, WRITE)[:, :written]
    np.testing.assert_array_equal(got[:, :written], prefix)
    canvas = jnp.full((3, 16), MASKED.mask_id, jnp.int32).at[:, :written].set(prefix)
    np.testing.assert_array_equal(got, decode(masked, condition, key, DECODE, canvas))
    assert int(got.min()) >= 0 and int(got.max()) < 16


def test_decode_hybrid_keeps_given_tokens(networks):
    """Half of the canvas each: given tokens in both halves, none, and all of them."""
    ar, masked = networks
    condition, key, mask_id = labels(0, 1, 2), jax.random.key(4), MASKED.mask_id
    given = jnp.full((3, 16), mask_id, jnp.int32).at[0, 3:12:2].set(5).at[2].set(jnp.arange(16))
    got = decode_hybrid(ar, masked, condition, key, WRITE, DECODE, 0.5, tokens_bl=given)
    np.testing.assert_array_equal(got[given != mask_id], given[given != mask_id])
    kept = jnp.where(given == mask_id, -1, given)[:, :8]
    prefix = decode_causal(ar, condition, key, WRITE, end=8, kept_bl=kept)
    np.testing.assert_array_equal(got, decode(masked, condition, key, DECODE, given.at[:, :8].set(prefix)))
    with pytest.raises(ConfigError, match=r"tokens_bl: a 4x4 grid needs tokens of shape \(b, 16\), got \(3, 8\)"):
        decode_hybrid(ar, masked, condition, key, WRITE, DECODE, 1.0, tokens_bl=given[:, :8])


def test_decode_hybrid_is_independent_of_the_batch_and_compiled_once(networks):
    ar, masked = networks
    keys = jax.random.split(jax.random.key(5), 3)
    together = decode_hybrid(ar, masked, labels(0, 1, 2), jax.random.clone(keys), WRITE, DECODE, 0.5)
    count = _decode_hybrid._cache_size()
    for i in (1, 2):
        alone = decode_hybrid(ar, masked, labels(i), jax.random.clone(keys[i : i + 1]), WRITE, DECODE, 0.5)
        np.testing.assert_array_equal(together[i], alone[0])
    assert _decode_hybrid._cache_size() == count + 1, "another label and key, the same program"


def test_decode_hybrid_refuses_networks_of_the_wrong_kind(networks):
    ar, masked = networks
    call = (labels(0), jax.random.key(0), WRITE, DECODE, 0.5)
    with pytest.raises(ConfigError, match="generator: is not causal"):
        decode_hybrid(masked, masked, *call)
    with pytest.raises(ConfigError, match="generator: is causal"):
        decode_hybrid(ar, ar, *call)
    other = LlamaConfig(**{**OPTIONS, "codebook_size": 8}, causal=True)
    with pytest.raises(ConfigError, match="ar: has 8 codes, the masked generator 16"):
        decode_hybrid(build(other, parameters(other, 0)), masked, *call)


@pytest.mark.slow
def test_pipeline_decodes_causal_and_hybrid(folders):
    masked, causal = folders
    pipeline = load(masked, ar=causal)
    assert pipeline.cfg == DECODE and pipeline.ar_cfg == WRITE
    scaled = load(masked, ar=causal, rope_scaling="ntk")
    assert scaled.generator.cfg.rope_scaling == scaled.ar.cfg.rope_scaling == "ntk"
    plain, hybrid = pipeline(["ant", 2], seed=5), pipeline(["ant", 2], seed=5, ar_ratio=0.5)
    assert plain.shape == hybrid.shape == (2, 16, 16, 3) and (plain != hybrid).any()
    np.testing.assert_array_equal(hybrid, pipeline(["ant", 2], seed=5, ar_ratio=0.5, batch_size=1))
    alone = load(causal)
    assert alone.cfg == WRITE
    np.testing.assert_array_equal(alone(["ant", 2], seed=5), pipeline(["ant", 2], seed=5, ar_ratio=1.0))
    with pytest.raises(ConfigError, match="samples with a CausalConfig, got a DecodeConfig"):
        alone("ant", cfg=DECODE)
    with pytest.raises(ConfigError, match="load the pipeline with ar=WEIGHTS"):
        alone("ant", ar_ratio=0.5)


def change(folder, **values):
    file = folder / "generator" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_load_refuses_a_causal_network_that_does_not_fit(folders):
    masked, causal = folders
    with pytest.raises(ConfigError, match="masked: its generator is not causal"):
        load(masked, ar=masked)
    with pytest.raises(ConfigError, match="causal: its generator is causal"):
        load(causal, ar=causal)
    change(causal, class_names=["x", "y", "z"])
    with pytest.raises(ConfigError, match="was trained on other classes"):
        load(masked, ar=causal)
    change(causal, tokenizer_hash="feed")
    with pytest.raises(ConfigError, match=r"causal: .* trained with tokenizer feed, .*masked has [0-9a-f]{16}"):
        load(masked, ar=causal)


@pytest.mark.slow
def test_sample_command_decodes_hybrid(folders, tmp_path, capsys):
    masked, causal = map(str, folders)
    images = []
    for name, argv in {
        "hybrid": ["--weights", masked, "--ar", causal, "--temperature", "0", "--choice-temperature", "0"],
        "half": ["--weights", masked, "--ar", causal, "--ar-ratio", "0.5", "--cfg-interval", "2"],
        "causal": ["--weights", causal, "--top-k", "5"],
    }.items():
        out = tmp_path / name
        assert cli.main(["sample", *argv, "--labels", "bee", "--per-class", "2", "--out", str(out)]) == 0
        images.append(np.asarray(Image.open(out / "000001.png")))
    assert (images[0] != images[1]).any() and images[0].shape == (16, 16, 3)
    pipeline = load(masked, ar=causal)
    cold = {"temperature": 0.0}
    pipeline = type(pipeline)(
        **{
            **vars(pipeline),
            "cfg": DecodeConfig(steps=3, choice_temperature=0.0, **cold),
            "ar_cfg": CausalConfig(guidance=1.5, **cold),
        }
    )
    np.testing.assert_array_equal(pipeline([1, 1], ar_ratio=0.25)[1], images[0])
    capsys.readouterr()
    assert cli.main(["sample", "--weights", causal, "--steps", "4"]) == 2
    assert "--steps: " in (said := capsys.readouterr().err) and "holds a causal generator" in said
    assert cli.main(["sample", "--weights", masked, "--ar-ratio", "0.5"]) == 2
    assert "--ar-ratio: needs --ar WEIGHTS" in capsys.readouterr().err

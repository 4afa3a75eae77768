"""Hybrid decoding from texts: two networks that read the same prompt each in its own way,
and twins that share an encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chameleon_files import WORDS
from helpers.chameleon_pipeline import CFG, save_chameleon
from helpers.text_folders import with_tokenizer
from helpers.tiny_pipeline import save_pipeline
from helpers.tiny_text_pipeline import TEXT_LLAMA, TOKENS, save_text_pipeline
from jax.sharding import PartitionSpec as P
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.conditioning import TokenConditioner
from maskgil_jax.config import CausalConfig, ConfigError
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import HybridCondition
from maskgil_jax.networks import create, params_of
from maskgil_jax.pipelines.pipeline import load
from maskgil_jax.runtime.mesh import make_mesh
from maskgil_jax.text_encoders.load import load_text_encoder

pytestmark = pytest.mark.slow

PROMPTS = ["a red cat", "two dog on the sun"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pipeline folders of one tokenizer: (masked text, Chameleon)."""
    tmp = tmp_path_factory.mktemp("hybrid")
    encoder = load_text_encoder(with_tokenizer("bert", tmp), max_tokens=TOKENS)
    return save_text_pipeline(tmp / "masked", encoder), save_chameleon(tmp / "chameleon")


@pytest.fixture(scope="module")
def hybrid(folders):
    return load(folders[0], ar=folders[1])


def conditions(pipeline, ar_ratio=0.5):
    found = pipeline.condition(prompts=PROMPTS, ar_ratio=ar_ratio)
    return jax.tree.map(jnp.asarray, found)


def tokens(pipeline, ar_ratio, **options):
    return np.asarray(pipeline.tokens(conditions(pipeline, ar_ratio), jax.random.key(3), ar_ratio=ar_ratio, **options))


def test_prompts_become_the_template_s_tokens_padded_on_the_left(hybrid):
    both = hybrid.condition(prompts=["red cat", "red red red cat"], ar_ratio=0.5)
    assert isinstance(both, HybridCondition) and both.condition.features_btd.shape == (2, TOKENS, 32)
    ids, mask = both.ar.ids_bt, both.ar.mask_bt
    size = WORDS["?"]  # "64x64" is in the vocabulary
    words = [WORDS[word] for word in "Generate an image of".split()]
    after = [WORDS[word] for word in "according to the following prompt:".split()]
    expected = [0, *words, 52, *after, WORDS["red"], WORDS["cat"], CFG.end_turn]
    assert size not in ids[0][mask[0]] and ids[0][mask[0]].tolist() == expected
    assert mask[1].sum() == mask[0].sum() + 2 and mask[:, -1].all() and ids.shape[1] == CFG.text_tokens
    larger = hybrid.condition(prompts=["red cat"], ar_ratio=0.5, grid=(8, 8)).ar
    assert larger.ids_bt[larger.mask_bt][5] == 53  # 128x128


def test_first_rows_are_those_of_the_causal_network_alone(hybrid):
    written = decode_causal(hybrid.ar, conditions(hybrid).ar, jax.random.key(3), hybrid.ar_cfg)
    for ratio, rows in ((0.25, 1), (0.5, 2), (0.6, 2), (0.75, 3)):
        got = tokens(hybrid, ratio)
        np.testing.assert_array_equal(got[:, : 4 * rows], written[:, : 4 * rows])
        assert (got[:, 4 * rows :] != np.asarray(written)[:, 4 * rows :]).any() and got.min() >= 0 and got.max() < 16
    canvas = jnp.full((2, 16), 16).at[:, :8].set(written[:, :8])
    rest = decode(hybrid.generator, conditions(hybrid).condition, jax.random.key(3), hybrid.cfg, canvas)
    np.testing.assert_array_equal(tokens(hybrid, 0.5), rest)


def test_ratio_zero_is_the_masked_network_and_one_the_causal(hybrid, folders):
    masked, causal = load(folders[0]), load(folders[1])
    np.testing.assert_array_equal(hybrid(prompts=PROMPTS, seed=4), masked(prompts=PROMPTS, seed=4))
    np.testing.assert_array_equal(hybrid(prompts=PROMPTS, seed=4, ar_ratio=1.0), causal(prompts=PROMPTS, seed=4))
    assert causal.cfg == CausalConfig(guidance=4.0, top_k=12) and isinstance(causal.conditioner, TokenConditioner)
    other = causal(prompts=PROMPTS[::-1], seed=4)
    assert (other[::-1] != causal(prompts=PROMPTS, seed=4)).any(), "the prompt matters"


def test_networks_on_a_mesh_decode_the_same_tokens(folders, hybrid):
    mesh = make_mesh(data=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    many = load(folders[0], ar=folders[1], mesh=mesh)
    assert many.generator.layers.mlp.up.kernel[...].sharding.spec == P(None, "fsdp", "tensor")
    condition = many.shard(conditions(hybrid))
    np.testing.assert_array_equal(many.tokens(condition, jax.random.key(3), ar_ratio=0.5), tokens(hybrid, 0.5))


def test_known_tokens_are_kept_by_both_networks(hybrid):
    given = np.full((2, 16), TEXT_LLAMA.mask_id, np.int32)
    given[0, 2:14:3], given[1, :5] = 7, 3
    got = tokens(hybrid, 0.5, tokens_bl=jnp.asarray(given))
    np.testing.assert_array_equal(got[given < 16], given[given < 16])


def test_negative_prompts_reach_both_networks(hybrid):
    both = hybrid.condition(prompts=PROMPTS, negative_prompts="blue", ar_ratio=0.5)
    assert both.ar.negative.ids_bt.shape[0] == both.condition.negative.features_btd.shape[0] == 2
    made = hybrid(prompts=PROMPTS, negative_prompts="blue", ar_ratio=1.0, seed=1)
    assert (made != hybrid(prompts=PROMPTS, ar_ratio=1.0, seed=1)).any()


def test_twins_of_one_text_encoder_share_the_condition(folders, tmp_path):
    """A causal Llama on the same text features, as configs/emoji_text_causal.py trains one."""
    about = load_weights(folders[0], "generator").metadata
    cfg = dataclasses.replace(TEXT_LLAMA, causal=True)
    params = jax.tree.map(lambda leaf: leaf * 8 if leaf.ndim > 1 else leaf, params_of(create(cfg, jax.random.key(8))))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape) / 2
    metadata = {"tokenizer_hash": about["tokenizer_hash"], "text_encoder": about["text_encoder"]}
    save_weights(tmp_path / "twin" / "generator", cfg, params, metadata=metadata)
    pipeline = load(folders[0], ar=tmp_path / "twin")
    assert pipeline.ar_conditioner is None and not isinstance(conditions(pipeline), HybridCondition)
    alone = decode_causal(pipeline.ar, conditions(pipeline), jax.random.key(3), pipeline.ar_cfg)
    np.testing.assert_array_equal(tokens(pipeline, 0.25)[:, :4], alone[:, :4])


def test_sample_command_draws_prompts_with_a_causal_network(folders, tmp_path, hybrid):
    masked, causal = map(str, folders)
    for name, more in {"half": ["--ar-ratio", "0.5"], "default": []}.items():
        out = tmp_path / name
        argv = ["sample", "--weights", masked, "--ar", causal, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], *more]
        assert cli.main([*argv, "--out", str(out)]) == 0
    expected = hybrid(prompts=PROMPTS, ar_ratio=0.5)
    found = np.stack([np.asarray(Image.open(tmp_path / "half" / f"00000{i}.png")) for i in (0, 1)])
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
    assert (np.asarray(Image.open(tmp_path / "default" / "000001.png")) != found[1]).any()


def test_load_refuses_a_causal_network_of_another_kind(folders, tmp_path):
    classes = save_pipeline(tmp_path / "classes")
    with pytest.raises(ConfigError, match=r"chameleon: is conditioned on tokens, .*classes is not"):
        load(classes, ar=folders[1])
    with pytest.raises(ConfigError, match=r"kernels: .*masked holds no Chameleon"):
        load(folders[0], kernels="int8")
    fresh = save_chameleon(tmp_path / "fresh")
    (fresh / "generator" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer.json: missing"):
        load(fresh)(prompts="a cat")
    assert load(fresh, text_encoder=tmp_path)(prompts="a cat").shape == (1, 16, 16, 3)

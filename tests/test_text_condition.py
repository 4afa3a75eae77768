"""Text in front of the image: LlamaGen's text-conditional network against its original,
and the masked network with a text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gpt_weights import llamagen_config, published_params, published_tensors, recipe_getter
from helpers.recipe import load_case
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from maskgil_jax.checkpoints.weights import load_generator, save_weights
from maskgil_jax.config import TEXT_RECIPE, CausalConfig, ConfigError, LlamaConfig
from maskgil_jax.convert.main import convert, export
from maskgil_jax.decoding.causal import decode_causal
from maskgil_jax.models.condition import ClassCondition, SizedCondition, TextCondition
from maskgil_jax.networks import build, create, params_of
from maskgil_jax.runtime.mesh import make_mesh, shardings
from maskgil_jax.training.generator import model_options
from maskgil_jax.training.losses import token_losses
from maskgil_jax.training.optimizer import make_optimizer

SMALL = LlamaConfig(
    codebook_size=16,
    num_classes=3,
    grid=(2, 3),
    condition="text",
    text_tokens=4,
    text_dim=6,
    width=32,
    depth=2,
    heads=2,
    mlp_width=32,
)


@pytest.fixture(scope="module")
def case():
    """(network, condition, arrays, tolerances) of the original's small text-conditional network."""
    config, io = load_case("llamagen_gpt/t2i_tiny")
    cfg = llamagen_config(config["hparams"], (4, 4))
    model = build(cfg, published_params("llamagen-t2i", cfg, recipe_getter(config)))
    condition = TextCondition(jnp.asarray(io["in.cond"]), jnp.asarray(io["in.emb_mask"] > 0))
    return model, condition, io, config["tolerance"]


@pytest.mark.parametrize("suffix", ["", "_drop"])
def test_text_llama_logits_and_loss_equal_llamagen(case, suffix):
    model, condition, io, tolerance = case
    if suffix:
        null = model.null_condition(condition)
        dropped = jnp.asarray(io["in.drop"])[:, None, None]
        condition = condition.replace(features_btd=jnp.where(dropped, null.features_btd, condition.features_btd))
    codes = jnp.asarray(io["in.codes"], jnp.int32)
    logits = jax.jit(lambda m, c: m(codes, c))(model, condition)
    np.testing.assert_allclose(logits, io[f"out.train_logits{suffix}"], atol=tolerance["train_logits"]["atol"], rtol=1e-5)
    loss = token_losses(logits, codes, 0.0)[io["in.valid"] > 0].mean()  # rows that are not valid are padding of the batch
    np.testing.assert_allclose(loss, io[f"out.train_loss{suffix}"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name,scale", [("cfg1", 1.0), ("cfg2", 2.0)])
def test_text_llama_greedy_tokens_equal_llamagen(case, name, scale):
    model, condition, io, _ = case
    got = decode_causal(model, condition, jax.random.key(0), CausalConfig(guidance=scale, temperature=0.0))
    np.testing.assert_array_equal(got, io[f"out.gen_{name}.tokens"])


def random_network(cfg, seed=0):
    params = params_of(create(cfg, jax.random.key(seed)))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(seed + 1), params["head"]["kernel"].shape)
    return build(cfg, params)


def text(batch, key=7):
    mask = jnp.asarray([[False, False, True, True], [False, True, True, True]])[jnp.arange(batch) % 2]
    return TextCondition(jax.random.normal(jax.random.key(key), (batch, 4, 6)), mask)


@pytest.mark.parametrize("causal", [False, True])
def test_text_padding_changes_nothing_and_words_do(causal):
    model = random_network(LlamaConfig(**{**vars(SMALL), "causal": causal}))
    tokens, condition = jnp.arange(12, dtype=jnp.int32).reshape(2, 6), text(2)
    noise = 10.0 * jax.random.normal(jax.random.key(3), condition.features_btd.shape)
    run = jax.jit(lambda text: model(tokens, text))
    before = run(condition)
    padding = condition.replace(
        features_btd=jnp.where(condition.mask_bt[..., None], condition.features_btd, condition.features_btd + noise)
    )
    np.testing.assert_array_equal(before, run(padding))
    words = condition.replace(features_btd=condition.features_btd.at[:, 3].add(noise[:, 3]))
    assert float(jnp.abs(run(words) - before).max(axis=(1, 2)).min()) > 1e-3
    null = model.null_condition(condition)
    np.testing.assert_array_equal(null.mask_bt, condition.mask_bt)
    assert float(jnp.abs(run(null) - before).max()) > 1e-3


def test_null_text_has_no_gradient_and_a_sharding():
    model = random_network(SMALL)
    tokens, condition = jnp.arange(6, dtype=jnp.int32)[None], text(1)
    loss = jax.jit(jax.grad(lambda m: jnp.sum(m(tokens, m.null_condition(condition)) ** 2)))
    grads = params_of(loss(model))
    assert not np.any(grads["caption_null"]) and np.any(grads["caption_up"]["kernel"])
    layout = shardings(params_of(model), make_mesh(data=2, fsdp=2, tensor=2))
    assert layout["caption_null"].spec == P() and layout["caption_up"]["kernel"].spec == P("fsdp", "tensor")


def test_text_llama_converts_and_exports_original_names(tmp_path, case):
    from safetensors.numpy import save_file

    model = case[0]
    config, _ = load_case("llamagen_gpt/t2i_tiny")
    get = recipe_getter(config)
    original = {name: get(name, tensor.shape) for name, tensor in published_tensors("llamagen-t2i", model.cfg).items()}
    assert {"cls_embedding.uncond_embedding", "cls_embedding.cap_proj.fc2.weight"} < original.keys() and len(original) == 20
    save_file(original, tmp_path / "t2i.safetensors")
    convert(tmp_path / "t2i.safetensors", tmp_path / "weights", options={"heads": 4, "grid": (4, 4)})
    np.testing.assert_array_equal(load_generator(tmp_path / "weights").caption_null[...], model.caption_null[...])
    back = export(tmp_path / "weights", "llamagen-t2i")
    assert set(back) == set(original)
    for name, array in original.items():
        np.testing.assert_array_equal(back[name], array)
    with pytest.raises(ValueError, match="condition = 'text', llamagen-c2i always has 'class'"):
        export(tmp_path / "weights", "llamagen-c2i")


OWN = LlamaConfig(**{**vars(SMALL), **{name: TEXT_RECIPE[name] for name in ("prefix_rotation", "caption_norm", "null_text")}})


def own_network():
    """A network of the own recipe whose null text has two real tokens."""
    params = params_of(random_network(OWN))
    params["caption_null"] = jax.random.normal(jax.random.key(9), (4, 6))
    params["caption_null_mask"] = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    return build(OWN, params)


@pytest.mark.slow
def test_encoder_null_text_has_its_own_mask():
    model, condition = own_network(), text(3)
    null = model.null_condition(condition)
    assert null.mask_bt.dtype == bool
    np.testing.assert_array_equal(null.mask_bt, [[True, True, False, False]] * 3)
    np.testing.assert_array_equal(null.features_btd, jnp.broadcast_to(model.caption_null[...], (3, 4, 6)))
    tokens = jnp.arange(18, dtype=jnp.int32).reshape(3, 6) % 16
    asked = TextCondition(null.features_btd, null.mask_bt)
    np.testing.assert_array_equal(model(tokens, null), model(tokens, asked))  # as if its text had been asked for
    sized = SizedCondition(condition, jnp.array([1, 2, 2]), jnp.array([3, 2, 3]))
    np.testing.assert_array_equal(model.null_condition(sized).condition.mask_bt, null.mask_bt)


def test_caption_norm_ignores_the_scale_of_features():
    tokens, condition = jnp.arange(12, dtype=jnp.int32).reshape(2, 6), text(2)
    larger = condition.replace(features_btd=100.0 * condition.features_btd)
    normed, plain = own_network(), random_network(SMALL)
    np.testing.assert_allclose(normed(tokens, condition), normed(tokens, larger), atol=1e-4)
    assert float(jnp.abs(plain(tokens, condition) - plain(tokens, larger)).max()) > 1e-2


def test_text_pool_adds_the_mean_of_the_real_words_to_every_position():
    pooled = build(dataclasses.replace(OWN, text_pool="mean"), params_of(own_network()))
    tokens, condition = jnp.arange(12, dtype=jnp.int32).reshape(2, 6), text(2)
    words_btd = pooled.prefix(condition)
    mean_bd = jnp.stack([words[mask].mean(0) for words, mask in zip(words_btd, np.asarray(condition.mask_bt, bool))])
    expected = own_network()
    plain = expected.embedded
    expected.embedded = lambda *arguments: plain(*arguments) + mean_bd[:, None]
    np.testing.assert_allclose(pooled(tokens, condition), expected(tokens, condition), atol=1e-5)
    sized = SizedCondition(condition, jnp.array([2, 2]), jnp.array([3, 3]))
    np.testing.assert_allclose(pooled(tokens, sized), pooled(tokens, condition), atol=1e-5)
    nothing = condition.replace(mask_bt=jnp.zeros_like(condition.mask_bt))
    assert np.all(np.isfinite(pooled(tokens, nothing)))


@pytest.mark.slow
def test_null_text_of_the_encoder_is_never_trained():
    model = own_network()
    tokens, condition = jnp.arange(6, dtype=jnp.int32)[None], text(1)
    grads = params_of(jax.grad(lambda m: jnp.sum(m(tokens, m.null_condition(condition)) ** 2))(model))
    assert not np.any(grads["caption_null"]) and not np.any(grads["caption_null_mask"])
    assert np.any(grads["caption_norm"]["scale"])
    layout = shardings(params_of(model), make_mesh(data=2, fsdp=2, tensor=2))
    assert layout["caption_null_mask"].spec == P() and layout["caption_norm"]["scale"].spec == P()
    adam = dict(learning_rate=0.1, beta1=0.9, beta2=0.96, weight_decay=0.5, clip_norm=1.0, warmup_steps=0, decay="constant")
    params = params_of(model)
    for decay_on in ("matrices", "all"):
        tx = make_optimizer(ConfigDict(dict(adam, decay_on=decay_on)), 10, text=True)
        updates, _ = tx.update(grads, tx.init(params), params)
        assert not np.any(updates["caption_null"]) and not np.any(updates["caption_null_mask"])
        assert np.any(updates["caption_norm"]["scale"]) and np.any(updates["caption_up"]["kernel"])


def test_own_recipe_is_refused_by_llamagens_file_and_by_classes(tmp_path):
    save_weights(tmp_path / "w", OWN, params_of(own_network()))
    found = load_generator(tmp_path / "w")
    np.testing.assert_array_equal(found.caption_null_mask[...], [1, 1, 0, 0])
    with pytest.raises(ValueError, match="llamagen-t2i always has"):
        export(tmp_path / "w", "llamagen-t2i")
    with pytest.raises(ConfigError, match='are options of condition "text"'):
        LlamaConfig(caption_norm=True)
    with pytest.raises(ConfigError, match=r"null_text: unknown value 'encode'.*'encoder'"):
        LlamaConfig(condition="text", null_text="encode")
    with pytest.raises(ConfigError, match=r"text_pool.*are options of condition"):
        LlamaConfig(text_pool="mean")
    with pytest.raises(ConfigError, match=r"text_pool.*causal"):
        LlamaConfig(condition="text", text_pool="mean", causal=True)


def test_run_file_of_a_text_generator_gets_the_recipe():
    sizes = dict(codebook_size=16, grid=(2, 2), condition="text", text_tokens=9, text_dim=6)
    cfg = model_options({"family": "llama", "preset": "tiny", "qk_norm": None}, **sizes)
    assert (cfg.text_tokens, cfg.text_dim, cfg.prefix_rotation) == (9, 6, "identity")
    assert cfg.caption_norm and cfg.null_text == "encoder"
    assert not model_options({"family": "llama", "preset": "tiny", "caption_norm": False}, **sizes).caption_norm
    with pytest.raises(ConfigError, match="'bert' cannot be conditioned on text; choose llama"):
        model_options({"family": "bert", "preset": "tiny"}, **sizes)


def test_weights_folder_keeps_the_kind_of_condition(tmp_path):
    save_weights(tmp_path / "w", SMALL, params_of(create(SMALL, jax.random.key(0))))
    assert load_generator(tmp_path / "w").cfg == SMALL


def test_text_llama_names_invalid_conditions():
    model = random_network(SMALL)
    tokens = jnp.zeros((2, 6), jnp.int32)
    with pytest.raises(ConfigError, match="text-conditional, got ClassCondition"):
        model(tokens, ClassCondition(jnp.zeros(2, jnp.int32)))
    with pytest.raises(ConfigError, match=r"expected features \(2, 4, 6\) and a mask \(2, 4\), got \(1, 4, 6\)"):
        model(tokens, text(1))
    with pytest.raises(ConfigError, match=r"condition: a text .*class_position"):
        LlamaConfig(condition="text", class_position="last")
    with pytest.raises(ConfigError, match="Did you mean 'text'"):
        LlamaConfig(condition="texts")

"""Open-MAGVIT2's tokenizer against reference outputs of the published code, its code of signs,
its losses and its files."""

import dataclasses
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.torch_names import draw_all, generated, golden, state_hash
from test_vqgan import RTOL, summary

from maskgil_jax import cli
from maskgil_jax.config import MAGVIT_PRESETS, ConfigError, MagvitConfig
from maskgil_jax.convert.engine import export_arrays, import_arrays
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.convert.readers.checkpoint import Problem
from maskgil_jax.convert.tables.magvit2 import averaged
from maskgil_jax.networks import abstract_params, build, count_params, create, flatten, params_of, unflatten
from maskgil_jax.tokenizers.magvit2 import Magvit2, depth_to_space
from maskgil_jax.tokenizers.quantizers import SignQuantizer, join_codes, sign_entropies, split_codes
from maskgil_jax.training.optimizer import learning_rate, make_optimizer
from maskgil_jax.training.tokenizer import init_state, jitted_step
from maskgil_jax.training.vq_losses import VQLossConfig

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
TINY = MagvitConfig(channels=4, multipliers=(1, 2), res_blocks=1, bits=5, norm_groups=2, image_size=8)


def published_state(name: str) -> dict[str, np.ndarray]:
    meta, _ = golden("vq", name)
    state = draw_all(meta["shapes"], meta["recipe"])
    assert state_hash(state) == meta["state_sha256"]
    return state


def found_in(state: dict[str, np.ndarray]) -> dict:
    return {name: (array.shape, array.dtype) for name, array in state.items()}


@jax.jit
def run(tokenizer, images_bhwc, codes_bhw):
    """Latents, codes, and the images of these codes and of the given ones."""
    z_bhwd = tokenizer.latents(images_bhwc)
    quantized = tokenizer.quantize(z_bhwd)
    images = tokenizer.decode(jnp.concatenate([quantized.codes_bhw, codes_bhw])).reshape(2, *images_bhwc.shape)
    return {"z": z_bhwd, "rec": images[0], "rec_codes": images[1]}, quantized


# ------------------------------------------------------------------------------------------------ the published code
@pytest.mark.parametrize(
    "name,family,which",
    [
        ("open_magvit2", "open-magvit2", "ema"),
        ("open_magvit2", "open-magvit2-raw", "raw"),
        # the real channel multipliers, at half the width
        pytest.param("open_magvit2_mid", "open-magvit2-raw", "raw", marks=pytest.mark.slow),
    ],
)
def test_magvit2_equals_the_published_code(name, family, which):
    """Codes equal, latents and images within tolerance, on a square and a non-square image,
    from both copies of the weights."""
    meta, arrays = golden("vq", name)
    state = published_state(name)
    plan, problems = make_plan(found_in(state), family=family)
    tokenizer = build(plan.cfg, unflatten(import_arrays(plan.needed, state)))
    h = meta["hparams"]
    published = (h["ddconfig"]["ch"], tuple(h["ddconfig"]["ch_mult"]), h["ddconfig"]["num_res_blocks"], h["n_embed"])
    cfg = plan.cfg
    assert not problems and (cfg.channels, cfg.multipliers, cfg.res_blocks, cfg.codebook_size) == published
    compared = set()
    for n in (0, 1):
        image = arrays[f"in.img{n}"] if f"in.img{n}" in arrays else generated(meta["generated"][f"img{n}"])
        codes = arrays[f"in.codes{n}"].astype(np.int32)
        outputs, quantized = run(tokenizer, image.transpose(0, 2, 3, 1), codes)
        np.testing.assert_array_equal(quantized.codes_bhw.reshape(-1), arrays[f"out.{which}.indices{n}"])
        for key, value in outputs.items():
            value, key = np.asarray(value).transpose(0, 3, 1, 2), f"{which}.{key}{n}"
            parts = {f"{key}.{part}": kept for part, kept in summary(value).items()} | {key: value}
            for part in parts.keys() & {a.removeprefix("out.") for a in arrays}:
                np.testing.assert_allclose(parts[part], arrays[f"out.{part}"], RTOL, meta["atol"][part], err_msg=part)
                compared.add(part)
        signs = np.asarray(tokenizer.codebook.lookup(codes)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(signs, arrays[f"out.codes_latent{n}"])
    wanted = {a.removeprefix("out.") for a in arrays if a.startswith(f"out.{which}.") and "indices" not in a}
    assert compared == wanted


@pytest.mark.parametrize("name", ["open_magvit2", "open_magvit2_mid"])
def test_losses_and_their_gradient_match_the_published_code(name):
    meta, arrays = golden("vq", name)
    z_bhwd = arrays["in.latent"].transpose(0, 2, 3, 1)
    size = arrays["in.latent"].size
    weights = np.arange(size, dtype=np.float32).reshape(arrays["in.latent"].shape).transpose(0, 2, 3, 1) / size
    quantizer = SignQuantizer(z_bhwd.shape[-1])

    def loss_fn(z_bhwd):
        quantized = quantizer(z_bhwd, entropy=True)
        losses = quantized.losses
        return losses["entropy"] + 0.25 * losses["commitment"] + 0.1 * jnp.sum(quantized.z_bhwd * weights), quantized

    grad, quantized = jax.jit(jax.grad(loss_fn, has_aux=True))(z_bhwd)
    per_latent, average = sign_entropies(z_bhwd.reshape(-1, quantizer.bits))
    np.testing.assert_array_equal(quantized.codes_bhw.reshape(-1), arrays["out.train.indices"])
    for key, value in {
        "entropy_loss": quantized.losses["entropy"],
        "commitment": quantized.losses["commitment"],
        "per_sample_entropy": per_latent,
        "codebook_entropy": average,
        "dlatent": np.asarray(grad).transpose(0, 3, 1, 2),
    }.items():
        np.testing.assert_allclose(value, arrays[f"out.train.{key}"], RTOL, meta["atol"][f"train.{key}"], err_msg=key)


# ------------------------------------------------------------------------------------------------ codes
def test_sign_quantizer_puts_the_lowest_bit_first():
    quantizer = SignQuantizer(5)
    codes = jnp.arange(32).reshape(1, 4, 8)
    np.testing.assert_array_equal(quantizer.lookup(jnp.array([1, 6])), [[1, -1, -1, -1, -1], [-1, 1, 1, -1, -1]])
    np.testing.assert_array_equal(quantizer.search(quantizer.lookup(codes) * 0.1), codes)
    assert quantizer.search(jnp.zeros((1, 1, 1, 5))) == 0, "0 counts as -1"
    np.testing.assert_array_equal(quantizer.lookup(jnp.array([32, -1])), quantizer.lookup(jnp.array([31, 0])))
    z = jax.random.normal(jax.random.key(0), (1, 2, 2, 5))
    quantized = quantizer(z)
    np.testing.assert_allclose(quantized.z_bhwd, jnp.where(z > 0, 1.0, -1.0), atol=1e-6)
    assert quantized.codes_bhw.dtype == jnp.int32 and set(quantized.losses) == {"codebook", "commitment"}


@pytest.mark.parametrize("name,bits", [("open_magvit2", 4), ("open_magvit2_mid", 5)])
def test_split_codes_equals_the_published_code(name, bits):
    _, arrays = golden("vq", name)
    codes = arrays["out.raw.indices0"].astype(np.int32)
    parts = split_codes(codes, (bits, bits))
    np.testing.assert_array_equal(parts[0], arrays["out.factorized_pre0"])
    np.testing.assert_array_equal(parts[1], arrays["out.factorized_post0"])
    np.testing.assert_array_equal(join_codes(parts, (bits, bits)), codes)


def test_sign_entropies_equal_those_of_the_whole_table():
    """Two halves of the bits give what a softmax over all 2^5 codes gives, and its gradient.

    It is warm, to hide nothing.
    """
    z = jax.random.normal(jax.random.key(0), (7, 5))
    corners = SignQuantizer(5).lookup(jnp.arange(32))

    def direct(z):
        logits = 2.0 * z @ corners.T / 0.7
        p = jax.nn.softmax(logits)
        average = p.mean(0)
        return -(p * jax.nn.log_softmax(logits)).sum(-1).mean() + 3.0 * -(average * jnp.log(average + 1e-5)).sum()

    def ours(z):
        per_latent, average = sign_entropies(z, 0.7)
        return per_latent + 3.0 * average

    (a, da), (b, db) = (jax.jit(jax.value_and_grad(f))(z) for f in (direct, ours))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(da, db, rtol=1e-4, atol=1e-6)


def test_sign_entropies_memory_is_bounded():
    """262,144 codes and 4 images of 16x16 codes, forwards and backwards: the whole table alone would be 1 GiB."""
    shape = jax.ShapeDtypeStruct((1024, 18), jnp.float32)
    compiled = jax.jit(jax.grad(lambda z: jnp.subtract(*sign_entropies(z)))).lower(shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 2**20


# ------------------------------------------------------------------------------------------------ the network
def tiny_tokenizer() -> Magvit2:
    """A tokenizer with random weights, drawn without JAX: quicker than compiling the initialisation."""
    rng = np.random.default_rng(0)
    return build(TINY, jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), abstract_params(TINY)))


@pytest.mark.slow
def test_magvit2_presets_have_the_published_sizes():
    params = abstract_params(MAGVIT_PRESETS["MAGVIT2-256"])
    parts = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
    assert parts == {"encoder": 49_751_442, "decoder": 65_376_387}
    assert count_params(MAGVIT_PRESETS["MAGVIT2-256"]) == 115_127_829
    for cfg in (MAGVIT_PRESETS["MAGVIT2-256"], MAGVIT_PRESETS["MAGVIT2-128"]):
        assert (cfg.codebook_size, cfg.grid) == (262_144, (16, 16))


def test_depth_to_space_puts_the_block_before_the_channel():
    x = jnp.arange(2 * 8).reshape(1, 1, 2, 8)
    np.testing.assert_array_equal(depth_to_space(x)[0, ..., 0], [[0, 2, 8, 10], [4, 6, 12, 14]])
    np.testing.assert_array_equal(depth_to_space(x)[0, ..., 1], [[1, 3, 9, 11], [5, 7, 13, 15]])


def test_magvit2_encodes_any_multiple_of_the_factor():
    tokenizer = tiny_tokenizer()
    decode = jax.jit(lambda t, x: (t.encode(x), t.decode(t.encode(x))))
    for shape in ((2, 8, 12, 3), (1, 2, 2, 3)):  # the last is a single code, whose spread is taken as 0
        images = jax.random.uniform(jax.random.key(1), shape, minval=-1.0)
        codes, decoded = decode(tokenizer, images)
        assert codes.shape == (shape[0], shape[1] // 2, shape[2] // 2) and codes.dtype == jnp.int32
        assert decoded.shape == shape and np.isfinite(decoded).all()
    with pytest.raises(ValueError, match=r"9x8 .*factor 2.*8x8"):
        tokenizer.encode(jnp.zeros((1, 9, 8, 3)))
    with pytest.raises(ValueError, match="integers"):
        tokenizer.decode(jnp.zeros((1, 4, 4)))
    with pytest.raises(ConfigError, match=r"bits: must be a whole number in .1, 30"):
        dataclasses.replace(TINY, bits=31)


def test_magvit2_initial_weights_have_the_documented_variance():
    """Kernels have variance 1 / fan-in, and the adaptive norms start as plain ones."""
    flat = flatten(jax.jit(lambda key: params_of(create(TINY, key)))(jax.random.key(0)))
    for name, leaf in flat.items():
        if "adaptive" in name:
            assert (leaf == (name.endswith("gamma/bias"))).all(), name
        elif name.endswith("kernel"):
            assert np.std(leaf) * np.sqrt(np.prod(leaf.shape[:-1])) == pytest.approx(1.0, abs=0.35), name


def test_magvit2_in_bfloat16_gives_float32_outputs():
    cfg = dataclasses.replace(TINY, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    tokenizer = nnx.eval_shape(lambda: Magvit2(cfg, rngs=nnx.Rngs(0)))
    assert jax.eval_shape(lambda m, x: m.encoder(x), tokenizer, images).dtype == jnp.bfloat16
    assert jax.eval_shape(lambda m, x: m.latents(x), tokenizer, images).dtype == jnp.float32
    features = jax.eval_shape(lambda m, x: m.decode_features(m.latents(x)), tokenizer, images)
    decoded = jax.eval_shape(lambda m, x: m.decode(m.encode(x)), tokenizer, images)
    assert features.dtype == jnp.bfloat16 and decoded.dtype == jnp.float32 and decoded.shape == images.shape


# ------------------------------------------------------------------------------------------------ files
def test_magvit2_files_round_trip_bit_for_bit():
    state = published_state("open_magvit2")
    raw = {name for name in state if not name.startswith("model_ema.")}
    assert {averaged(name) for name in raw} == state.keys() - raw
    for family, names in {"open-magvit2-raw": raw, "open-magvit2": state.keys() - raw}.items():
        plan, _ = make_plan(found_in(state), family=family)
        back = export_arrays(plan.family.table(plan.cfg), import_arrays(plan.needed, state))
        assert back.keys() == names and all(np.array_equal(back[name], state[name]) for name in names)
        assert make_plan(found_in(back))[0].name == family, "each copy is recognised alone"


def test_magvit2_converter_checks_files_strictly():
    found = found_in(published_state("open_magvit2"))
    counters = {"model_ema.decay": ((), np.dtype("float32")), "model_ema.num_updates": ((), np.dtype("int32"))}
    loss = {name: ((3,), np.dtype("float32")) for name in ("loss.logvar", "model_ema.losslogvar")}
    plan, problems = make_plan(found | counters | loss)
    assert plan.name == "open-magvit2" and not problems and plan.cfg.image_size == 32 and "image_size = 32" in plan.notes[0]
    for name in ("encoder.conv_in.bias", "encoder.down.0.attn.0.q.weight", "model_ema.encoderconv_inbias", "model_ema.shadow"):
        for family in ("open-magvit2", "open-magvit2-raw"):
            _, problems = make_plan(found | {name: ((3,), np.dtype("float32"))}, family=family)
            assert problems == [f"{name}: unknown, no network of this family and size has it (shape (3,))"]
    missing = "model_ema.decoderadaptive1gammabias"
    _, problems = make_plan({name: about for name, about in found.items() if name != missing})
    assert problems == [f"{missing}: missing; this family needs it, of shape (32,)"]
    _, problems = make_plan(found, extras={"hyper_parameters": {"n_embed": 262144}})
    assert problems == ["its options say n_embed = 262144, its tensors make it 256"]
    with pytest.raises(Problem, match=r"bits: must be a whole number in .1, 30"):
        make_plan(found | {"model_ema.encoderconv_outweight": ((99, 32, 1, 1), np.dtype("float32"))})


# ------------------------------------------------------------------------------------------------ training
@pytest.mark.slow
def test_tokenizer_trainer_trains_magvit2(emoji):
    config = runpy.run_path(str(CONFIGS / "demo_tokenizer.py"))["get_config"]()
    config.restart_after = 0
    loss_cfg = VQLossConfig(l1=1.0, perceptual=0.0, entropy=0.1, adversarial=0.0)
    tx, schedule = make_optimizer(config.optimizer, 20), learning_rate(config.optimizer, 20)
    state = jax.jit(init_state(TINY, None, tx, tx, ema=False))(jax.random.key(0))
    step = jitted_step(TINY, loss_cfg, config, None, tx, tx, schedule, None)
    batch = {"image": np.stack([emoji[i]["image"][24:40, 24:40] for i in range(8)])}
    history = []
    for _ in range(20):
        state, metrics = step(state, batch, jax.random.key(1), None)
        history.append({name: float(value.compute()) for name, value in metrics.items()})
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["codebook"] == 0 and 0 < history[-1]["codebook_usage"] <= 1
    assert np.any(state.params["decoder"]["adaptive"]["0"]["beta"]["kernel"]), "it starts at 0 and has moved"


def test_tokenizer_trainer_refuses_to_restart_codes_of_signs(tmp_path, capsys):
    argv = ["--config", "demo_tokenizer", "--workdir", str(tmp_path / "run"), "--config.model.preset=MAGVIT2-small"]
    assert cli.main(["train", *argv, "--config.model.bits=6"]) == 2
    assert "config.restart_after: MAGVIT2-small has no codebook vectors to restart" in capsys.readouterr().err

"""Tokenizer losses and discriminator against reference values of the published code."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from helpers.feature_network_weights import lpips_network
from helpers.torch_names import draw_all, golden, state_hash, to_flax

from maskgil_jax.config import ConfigError
from maskgil_jax.tokenizers.quantizers import VectorQuantizer
from maskgil_jax.training.discriminator import PatchGAN
from maskgil_jax.training.vq_losses import (
    VQLossConfig,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    reconstruction_loss,
    started,
    tokenizer_loss,
)

RTOL = 1e-5  # beside each value's own atol: ten times the reference's float32 error against float64


@functools.cache
def losses_case():
    return golden("vq_losses", "losses")


def close(value, name: str):
    meta, arrays = losses_case()
    np.testing.assert_allclose(value, arrays[name], RTOL, meta["atol"][name], err_msg=name)


def nhwc(x):
    return jnp.asarray(x).transpose(0, 2, 3, 1)


def fill(cls, flat: dict, **options):
    """A network of weights under their paths; `build` covers only what has a config."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: cls(**options, rngs=nnx.Rngs(0))))
    expected = traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")
    assert {n: a.shape for n, a in flat.items()} == {n: a.shape for n, a in expected.items()}
    return nnx.merge(graphdef, traverse_util.unflatten_dict({n: jnp.asarray(a) for n, a in flat.items()}, sep="/"))


def discriminator_of(state: dict, width: int):
    """(network, running statistics) from a published state dict: convolutions at 0, 2, 5, 8, 11, norms at 3, 6, 9."""
    flat, stats = {}, {}
    for name, array in state.items():
        index, leaf = re.fullmatch(r"main\.(\d+)\.(\w+)", name).groups()
        number = str(-(-int(index) // 3)) if int(index) % 3 != 0 or index == "0" else str(int(index) // 3)
        if leaf.startswith("running_"):
            stats.setdefault(number, {})[leaf.removeprefix("running_")] = jnp.asarray(array)
        elif int(index) % 3 == 0 and index != "0" and leaf in ("weight", "bias"):
            flat[f"norms/{number}/" + {"weight": "scale"}.get(leaf, leaf)] = array
        elif leaf in ("weight", "bias"):
            path = f"convs/{number}/" + {"weight": "kernel"}.get(leaf, leaf)
            flat[path] = to_flax(path, array)
    return fill(PatchGAN, flat, width=width), stats


# ------------------------------------------------------------------------------------------------ codebook
@pytest.mark.parametrize("l2_normalize", [True, False])
def test_quantizer_losses_and_gradients_match_reference(l2_normalize):
    meta, arrays = losses_case()
    case, beta, ratio = f"vq.l2{int(l2_normalize)}", meta["vq"]["beta"], meta["vq"]["entropy_loss_ratio"]
    z, table = nhwc(arrays["vq.z"]), jnp.asarray(arrays["vq.embedding"])
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: VectorQuantizer(*table.shape, l2_normalize, rngs=nnx.Rngs(0))))

    def run(z, table):
        out = nnx.merge(graphdef, {"embedding": table})(z, entropy=True)
        total = out.losses["codebook"] + beta * out.losses["commitment"] + ratio * out.losses["entropy"]
        return total + 0.3 * out.z_bhwd.sum(), out

    (_, out), (dz, dtable) = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(z, table)
    np.testing.assert_array_equal(out.codes_bhw.reshape(-1), arrays[f"{case}.indices"])
    close(out.z_bhwd.transpose(0, 3, 1, 2), f"{case}.quant")
    close(out.losses["codebook"], f"{case}.vq_loss")
    close(beta * out.losses["commitment"], f"{case}.commit_loss")
    close(ratio * out.losses["entropy"], f"{case}.entropy_loss")
    close(dz.transpose(0, 3, 1, 2), f"{case}.dz")
    close(dtable, f"{case}.dembedding")


# ------------------------------------------------------------------------------------------------ adversarial
def test_adversarial_losses_match_reference():
    _, arrays = losses_case()
    real, fake = arrays["gan.logits_real"], arrays["gan.logits_fake"]
    close(discriminator_loss("hinge", real, fake), "gan.hinge_d_loss")
    close(discriminator_loss("vanilla", real, fake), "gan.vanilla_d_loss")
    close(discriminator_loss("non_saturating_swapped", real, fake), "gan.non_saturating_d_loss")
    close(adversarial_loss("hinge", fake), "gan.hinge_gen_loss")
    close(adversarial_loss("non_saturating_swapped", fake), "gan.non_saturating_gen_loss")
    sigmoid = 1 / (1 + np.exp(-fake.astype(np.float64)))
    np.testing.assert_allclose(adversarial_loss("non_saturating", fake), -np.log(sigmoid).mean(), 1e-6)
    for kind in ("vanilla", "non_saturating"):  # the same discriminator
        close(discriminator_loss(kind, real, fake), "gan.vanilla_d_loss")
    with pytest.raises(ConfigError, match="unknown value 'hinges'"):
        discriminator_loss("hinges", real, fake)


def conv_nchw(x, kernel, stride, padding):
    """A convolution in the reference's layout, (out, in, kh, kw) kernels."""
    dims = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=dims)


def test_adaptive_weight_matches_gradient_norms():
    _, arrays = losses_case()
    h, target, kernel, patches = (arrays[f"adaptive.{n}"] for n in ("h", "target", "last_layer", "disc_conv"))

    def nll(kernel):
        return jnp.mean(jnp.square(conv_nchw(h, kernel, 1, 1) - target))

    def adversarial(kernel):
        return -jnp.mean(conv_nchw(conv_nchw(h, kernel, 1, 1), patches, 2, 0))

    close(nll(kernel), "adaptive.nll")
    close(adversarial(kernel), "adaptive.g")
    close(adaptive_weight(nll, adversarial, kernel), "adaptive.weight")
    assert adaptive_weight(lambda k: 1e6 * k.sum(), lambda k: 0.0 * k.sum(), kernel) == 1e4
    assert not np.any(jax.grad(lambda k: adaptive_weight(nll, adversarial, k))(jnp.asarray(kernel)))


@pytest.mark.slow
def test_tokenizer_loss_matches_reference_before_and_after_disc_start():
    meta, arrays = losses_case()
    full = meta["full"]
    cfg = VQLossConfig(adversarial=full["disc_weight"], disc_start=full["disc_start"])
    lpips = lpips_network(full["lpips_recipe"])
    shapes = golden("vq_losses", "patchgan")[0]["shapes"]
    keep = {name: np.zeros((), np.int64) for name in shapes if name.endswith("num_batches_tracked")}
    discriminator, stats = discriminator_of(draw_all(shapes, full["disc_recipe"], keep), full["disc_dim"])
    images, h, kernel = nhwc(arrays["full.input"]), arrays["full.h"], jnp.asarray(arrays["full.last_layer"])
    codebook, commit, entropy = full["codebook_loss"]
    losses = {"codebook": jnp.array(codebook), "commitment": jnp.array(commit / cfg.commitment)}

    def render(kernel):
        return jnp.tanh(conv_nchw(h, kernel, 1, 1)).transpose(0, 2, 3, 1)

    def discriminate(images):
        return discriminator(images, stats, train=False)[0]

    @jax.jit
    def step_of(step):
        def loss(kernel):
            value, metrics = tokenizer_loss(
                render, kernel, images, losses, cfg, perceptual=lpips, discriminate=discriminate, step=step
            )
            return value + entropy, metrics

        real, fake = discriminate(images), discriminate(render(kernel))
        disc = cfg.adversarial * started(step, cfg) * discriminator_loss("hinge", real, fake)
        return jax.value_and_grad(loss, has_aux=True)(kernel), disc, fake

    close(render(kernel).transpose(0, 3, 1, 2), "full.rec")
    close(reconstruction_loss(images, render(kernel), cfg), "full.mse")
    close(lpips(images, render(kernel)).reshape(2, 1, 1, 1), "full.lpips")
    for step in (99, 101):
        ((loss, _), grad), disc, fake = step_of(step)
        close(loss, f"full.step{step}.gen_loss")
        close(grad, f"full.step{step}.grad_last_layer")
        close(disc, f"full.step{step}.disc_loss")
        close(fake.transpose(0, 3, 1, 2), "full.logits_fake")


def test_adversarial_term_starts_at_disc_start():
    cfg = VQLossConfig(disc_start=100)
    assert [float(started(jnp.array(step), cfg)) for step in (99, 100, 101)] == [0.0, 1.0, 1.0]


def test_zero_weight_disables_loss_term():
    """Without a perceptual network or a discriminator the rest of the loss is unchanged,
    and nothing else is computed."""
    images, kernel = jnp.zeros((1, 4, 4, 3)), jnp.ones((1,))
    losses = {"codebook": jnp.array(2.0), "commitment": jnp.array(4.0)}
    cfg = VQLossConfig(l1=1.0, l2=2.0)
    loss, metrics = tokenizer_loss(lambda k: images + 0.5 * k[None, None, None], kernel, images, losses, cfg)
    assert loss == pytest.approx(0.5 + 2 * 0.25 + 2.0 + 0.25 * 4.0)
    assert set(metrics) == {"reconstruction", "codebook", "commitment", "loss"}
    with pytest.raises(ConfigError, match=r"perceptual: .* -1"):
        VQLossConfig(perceptual=-1)


# ------------------------------------------------------------------------------------------------ PatchGAN
@pytest.mark.slow
def test_discriminator_matches_published_code():
    meta, arrays = golden("vq_losses", "patchgan")
    keep = {name: np.zeros((), np.int64) for name in meta["shapes"] if name.endswith("num_batches_tracked")}
    state = draw_all(meta["shapes"], meta["recipe"], keep)
    assert state_hash(state) == meta["state_sha256"]
    discriminator, stats = discriminator_of(state, meta["hparams"]["ndf"])
    for n in (0, 1):
        images = nhwc(arrays[f"in.img{n}"])
        logits, unmoved = discriminator(images, stats, train=False)
        np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), arrays[f"out.eval_img{n}"], RTOL, meta["atol"][f"eval_img{n}"])
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), unmoved, stats))
        logits, moved = discriminator(images, stats, train=True)
        np.testing.assert_allclose(
            logits.transpose(0, 3, 1, 2), arrays[f"out.train_img{n}"], RTOL, meta["atol"][f"train_img{n}"]
        )
        for name in ("mean", "var"):
            if n == 0:
                key = f"bn3_running_{name}_after"
                np.testing.assert_allclose(moved["1"][name], arrays[f"out.{key}"], RTOL, meta["atol"][key])


@pytest.mark.slow
def test_discriminator_has_published_size_and_group_norm_variant():
    published = nnx.eval_shape(lambda: PatchGAN(rngs=nnx.Rngs(0)))
    assert sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(published, nnx.Param))) == 2_765_633
    graphdef, state = nnx.split(nnx.eval_shape(lambda: PatchGAN(width=8, norm="group", rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), nnx.to_pure_dict(state))
    grouped = nnx.merge(graphdef, weights)
    assert grouped.initial_stats() == {}
    images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda m, x: m(x, {}, train=True)[0])
    together, alone = run(grouped, images), run(grouped, images[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    with pytest.raises(ConfigError, match="norm: unknown value 'layer'"):
        PatchGAN(width=8, norm="layer", rngs=nnx.Rngs(0))

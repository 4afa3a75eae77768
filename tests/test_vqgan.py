"""The VQ tokenizer against reference outputs of the published code, its sizes, its code search and its refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.torch_names import draw_all, generated, golden, state_hash

from maskgil_jax.config import VQ_PRESETS, ConfigError, VQConfig
from maskgil_jax.convert.engine import import_arrays
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.networks import abstract_params, build, count_params, create, flatten, params_of, unflatten
from maskgil_jax.tokenizers.patches import fold_patches, unfold_patches
from maskgil_jax.tokenizers.quantizers import VectorQuantizer, nearest_codes
from maskgil_jax.tokenizers.vqgan import VQGAN, conv_of, doubled, norm_of

RTOL = 1e-5  # beside each output's own atol: ten times the reference's float32 error against float64

TINY = VQConfig(
    channels=8, multipliers=(1, 2), res_blocks=1, latent_dim=8, codebook_size=16, codebook_dim=4, norm_groups=4, image_size=8
)


def tiny_tokenizer() -> VQGAN:
    """A tokenizer with random weights, drawn without JAX: quicker than compiling the initialisation."""
    rng = np.random.default_rng(0)
    return build(TINY, jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), abstract_params(TINY)))


def reference_config(meta: dict) -> VQConfig:
    """The published hyperparameters of a reference case as our options."""
    h = meta["hparams"]
    if "ddconfig" in h:
        dd = h["ddconfig"]
        level_of = {dd["resolution"] >> i: i for i in range(len(dd["ch_mult"]))}
        return VQConfig(
            channels=dd["ch"],
            multipliers=tuple(dd["ch_mult"]),
            res_blocks=dd["num_res_blocks"],
            attention_levels=tuple(level_of[size] for size in dd["attn_resolutions"]),
            latent_dim=dd["z_channels"],
            codebook_size=h["n_embed"],
            codebook_dim=h["embed_dim"],
            l2_normalize=False,
        )
    return VQConfig(
        channels=h["ch"],
        multipliers=tuple(h["encoder_ch_mult"]),
        latent_dim=h["z_channels"],
        codebook_size=h["codebook_size"],
        codebook_dim=h["codebook_embed_dim"],
    )


def reference_case(name: str):
    """(tokenizer with the reference weights, meta, arrays)."""
    meta, arrays = golden("vq", name)
    keep = {"quantize.codebook_used": np.zeros(65536, np.float32)}
    state = draw_all(meta["shapes"], meta["recipe"], keep)
    assert state_hash(state) == meta["state_sha256"]
    plan, problems = make_plan({name: (array.shape, array.dtype) for name, array in state.items()})
    levels, same = len(plan.cfg.multipliers), reference_config(meta)
    absolute = tuple(i % levels for i in same.attention_levels), tuple(i % levels for i in plan.cfg.attention_levels)
    assert not problems and absolute[0] == absolute[1]
    same = dataclasses.replace(same, attention_levels=plan.cfg.attention_levels, image_size=plan.cfg.image_size)
    assert plan.cfg == same, "the shapes tell the published options"
    return build(plan.cfg, unflatten(import_arrays(plan.needed, state))), meta, arrays


def summary(x: np.ndarray) -> dict[str, np.ndarray]:
    """What a reference keeps of a large output."""
    flat = x.reshape(-1)
    picks = {f"slice{n}": flat[np.linspace(0, flat.size - 1, n).astype(int)] for n in (32, 512)}
    return {"mean": flat.mean(), "std": flat.std(ddof=1), **picks}


@jax.jit
def run(tokenizer, images_bhwc, codes_bhw):
    """Every output the references hold, each network compiled once: the three inputs of the decoder share a batch."""
    z_bhwd = tokenizer.latents(images_bhwc)
    quantized = tokenizer.quantize(z_bhwd)
    lookup = tokenizer.codebook.lookup
    inputs = jnp.stack([lookup(quantized.codes_bhw), lookup(codes_bhw), quantized.z_bhwd])
    images = tokenizer.decode_latents(inputs.reshape(-1, *z_bhwd.shape[1:])).reshape(3, *images_bhwc.shape)
    outputs = {"enc": tokenizer.encoder(images_bhwc), "z": z_bhwd, "quant": quantized.z_bhwd}
    return outputs | dict(zip(("rec", "rec_codes", "forward_rec"), images, strict=True)), quantized


MID = ("llamagen_vq16_mid", "llamagen_vq8_mid", "taming_f16_mid", "chameleon_mid")  # real multipliers, reduced width


@pytest.mark.parametrize("name", ["llamagen_vq16", *(pytest.param(name, marks=pytest.mark.slow) for name in MID)])
def test_vqgan_equals_the_published_code(name):
    """Codes equal, latents and images within tolerance, on a square and a non-square image."""
    tokenizer, meta, arrays = reference_case(name)
    compared = set()
    for n in (0, 1):
        image = arrays[f"in.img{n}"] if f"in.img{n}" in arrays else generated(meta["generated"][f"img{n}"])
        outputs, quantized = run(tokenizer, image.transpose(0, 2, 3, 1), arrays[f"in.codes{n}"])
        np.testing.assert_array_equal(quantized.codes_bhw.reshape(-1), arrays[f"out.indices{n}"])
        for key, value in outputs.items():
            value = np.asarray(value).transpose(0, 3, 1, 2)
            parts = {f"{key}{n}.{part}": kept for part, kept in summary(value).items()} | {f"{key}{n}": value}
            if key == "forward_rec" and f"out.forward_rec{n}" in arrays:  # kept as 32 values under its plain name
                parts[f"{key}{n}"] = summary(value)["slice32"]
            for part in parts.keys() & {a.removeprefix("out.") for a in arrays}:
                np.testing.assert_allclose(parts[part], arrays[f"out.{part}"], RTOL, meta["atol"][part], err_msg=part)
                compared.add(part)
        if f"out.codebook_loss{n}" in arrays:  # the sum as taming weighs it: beta on the codebook's side
            loss = quantized.losses["commitment"] + 0.25 * quantized.losses["codebook"]
            np.testing.assert_allclose(loss, arrays[f"out.codebook_loss{n}"], RTOL, meta["atol"][f"codebook_loss{n}"])
            compared.add(f"codebook_loss{n}")
    wanted = {a.removeprefix("out.") for a in arrays if a.startswith("out.") and "ind" not in a}
    assert compared == wanted


@pytest.mark.slow
def test_vqgan_presets_have_the_published_sizes():
    assert count_params(VQ_PRESETS["VQ-16"]) == 71_883_403
    assert count_params(VQ_PRESETS["VQ-8"]) == 70_109_835
    chameleon = VQConfig(attention_levels=(), codebook_size=8192, codebook_dim=256, l2_normalize=False, image_size=512)
    assert count_params(chameleon) == 68_718_467


def test_nearest_codes_is_exact_in_blocks_and_takes_the_first_of_ties():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(37, 5)).astype(np.float32)
    table = np.concatenate([table, table[::-1]])  # every code twice: the first must win
    z = rng.normal(size=(101, 5)).astype(np.float32)
    z[:37] = table[:37]
    exact = np.square(z[:, None].astype(np.float64) - table[None, :37]).sum(-1).argmin(1)
    for max_elements in (2**24, 74 * 10, 74, 1):
        np.testing.assert_array_equal(nearest_codes(jnp.asarray(z), jnp.asarray(table), max_elements), exact)


@pytest.mark.parametrize("normalize", [False, True], ids=["euclidean", "cosine"])
def test_nearest_codes_is_exact_among_262144_codes(normalize):
    """In two blocks, against float64; the Euclidean table is a fresh one, tiny beside the latents."""
    quantizer = VectorQuantizer(2, 8, normalize, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    table = rng.uniform(-1, 1, (2**18, 8)).astype(np.float32) * (1.0 if normalize else 2.0**-18)
    quantizer.embedding = nnx.Param(jnp.asarray(table))
    z = rng.normal(size=(1, 10, 7, 8)).astype(np.float32)
    codes = np.asarray(jax.jit(lambda q, z: q.search(z))(quantizer, z)).reshape(-1)
    table, z = np.asarray(quantizer.vectors(), np.float64), np.asarray(quantizer.normalized(jnp.asarray(z)), np.float64)
    scores = np.square(table).sum(-1)[None] - 2 * z.reshape(-1, 8) @ table.T
    np.testing.assert_array_equal(codes, scores.argmin(1))


def test_nearest_codes_memory_is_bounded():
    """262,144 codes and 4 images of 16x16 codes: 1 GiB of distances at once, unless in blocks."""
    shapes = jax.ShapeDtypeStruct((1024, 18), jnp.float32), jax.ShapeDtypeStruct((2**18, 18), jnp.float32)
    compiled = jax.jit(nearest_codes).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 300 * 2**20


def test_quantizer_passes_the_gradient_straight_through():
    quantizer = VectorQuantizer(16, 4, False, rngs=nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(1), (1, 2, 2, 4))
    weights = jax.random.normal(jax.random.key(2), z.shape)
    grad = jax.grad(lambda z: jnp.sum(weights * quantizer(z).z_bhwd))(z)
    np.testing.assert_array_equal(grad, weights)
    np.testing.assert_allclose(quantizer(z).z_bhwd, quantizer.lookup(quantizer.search(z)), atol=1e-6)


def test_quantizer_gradient_is_finite_at_zero():
    quantizer = VectorQuantizer(16, 4, True, rngs=nnx.Rngs(0))

    def loss(z):
        quantized = quantizer(z, entropy=True)
        return quantized.losses["entropy"] + quantized.z_bhwd.sum()

    assert np.isfinite(jax.jit(jax.grad(loss))(jnp.zeros((1, 1, 1, 4)))).all()


def test_decode_clamps_codes_beyond_the_codebook():
    quantizer = VectorQuantizer(16, 4, True, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(quantizer.lookup(jnp.array([16, -1])), quantizer.vectors()[jnp.array([15, 0])])


def test_cpu_forms_of_convolution_and_norm_give_the_same():
    """Sums in two levels against Flax's norm, folded doubling against a convolution of the enlarged image."""
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 8)) * 2 + 1
    norm, conv = norm_of(TINY, 8, rngs=nnx.Rngs(0)), conv_of(TINY, 8, 6, 3, rngs=nnx.Rngs(0))
    for affine in (norm.scale, norm.bias, conv.bias):
        affine[...] = jax.random.normal(jax.random.key(affine.size), affine.shape)

    @jax.jit
    def both(norm, conv):
        return (norm(x), doubled(conv, x, fold=True)), (nnx.GroupNorm.__call__(norm, x), doubled(conv, x, fold=False))

    quick, plain = both(norm, conv)
    assert quick[1].shape == (2, 6, 10, 6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), quick, plain)


@pytest.mark.slow
def test_vqgan_encodes_and_decodes_any_multiple_of_the_factor():
    """Any multiple of the downsampling factor; the round trip is that of `quantize`."""
    tokenizer = tiny_tokenizer()
    images = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1.0)

    @jax.jit
    def run(tokenizer):
        codes, quantized = tokenizer.encode(images), tokenizer.quantize(tokenizer.latents(images))
        features = tokenizer.decode_features(quantized.z_bhwd)
        rendered = tokenizer.render(features, tokenizer.decoder.conv_out.kernel[...])
        return codes, tokenizer.decode(codes), quantized.codes_bhw, tokenizer.decode_latents(quantized.z_bhwd), rendered

    codes, decoded, quantized_codes, expected, rendered = run(tokenizer)
    assert codes.shape == (2, 4, 6) and codes.dtype == jnp.int32 and len(np.unique(codes)) > 1
    assert decoded.shape == images.shape
    np.testing.assert_array_equal(codes, quantized_codes)
    np.testing.assert_allclose(decoded, expected, atol=1e-5)
    np.testing.assert_allclose(rendered, expected, atol=1e-5)


def test_folded_patches_are_blocks_of_pixels_and_unfold_again():
    x = jax.random.normal(jax.random.key(1), (2, 6, 4, 3))
    folded = fold_patches(x, 2)
    assert folded.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(folded[1, 2, 0].reshape(2, 2, 3), x[1, 4:6, 0:2])
    np.testing.assert_array_equal(unfold_patches(folded, 2), x)


@pytest.mark.slow
def test_patch_option_keeps_every_form_of_decoding_equal():
    """Patches of 2 pixels and one halving: a code for every 4x4 pixels; convolutions see 12 channels in and give 12."""
    cfg = dataclasses.replace(TINY, patch=2)
    assert cfg.downsample == 4 and cfg.grid == (TINY.image_size // 4,) * 2
    images = jax.random.uniform(jax.random.key(1), (2, 8, 12, 3), minval=-1.0)

    @jax.jit
    def run(key):
        tokenizer = create(cfg, key)
        kernels = tokenizer.encoder.conv_in.kernel[...], tokenizer.decoder.conv_out.kernel[...]
        codes = tokenizer.encode(images)
        z = tokenizer.codebook.lookup(codes)
        decoded = tokenizer.decode(codes), tokenizer.render(tokenizer.decode_features(z), kernels[1])
        return codes, kernels, decoded, tokenizer.decoder(tokenizer.post_quant_conv(z))

    codes, (first, last), (decoded, rendered), direct = run(jax.random.key(0))
    assert codes.shape == (2, 2, 3)
    assert first.shape[2] == 12 and last.shape[3] == 12
    assert decoded.shape == images.shape
    np.testing.assert_allclose(rendered, decoded, atol=1e-5)
    np.testing.assert_allclose(direct, decoded, atol=1e-5)
    with pytest.raises(ValueError, match=r"9x8 .*factor 4"):
        jax.eval_shape(lambda m: m.encode(jnp.zeros((1, 9, 8, 3))), nnx.eval_shape(lambda: VQGAN(cfg, rngs=nnx.Rngs(0))))


@pytest.mark.slow
def test_vqgan_initial_weights_have_the_documented_variance():
    """Kernels have variance 1 / fan-in, normalised codes length 1, and two keys give two networks."""
    init = jax.jit(lambda key: params_of(create(TINY, key)))
    first, again, other = (flatten(init(jax.random.key(n))) for n in (0, 0, 1))
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[name])
        if name.endswith("kernel"):
            assert np.std(leaf) * np.sqrt(np.prod(leaf.shape[:-1])) == pytest.approx(1.0, abs=0.2), name
            assert not np.array_equal(leaf, other[name]), name
    np.testing.assert_allclose(np.linalg.norm(first["codebook/embedding"], axis=-1), 1.0, rtol=1e-5)


def test_vqgan_in_bfloat16_gives_float32_outputs():
    cfg = dataclasses.replace(TINY, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)
    tokenizer = nnx.eval_shape(lambda: VQGAN(cfg, rngs=nnx.Rngs(0)))
    assert jax.eval_shape(lambda m, x: m.encoder(x), tokenizer, images).dtype == jnp.bfloat16
    assert jax.eval_shape(lambda m, x: m.latents(x), tokenizer, images).dtype == jnp.float32
    decoded = jax.eval_shape(lambda m, x: m.decode(m.encode(x)), tokenizer, images)
    assert decoded.dtype == jnp.float32 and decoded.shape == images.shape
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(tokenizer, nnx.Param))} == {jnp.dtype("float32")}


def test_vqgan_names_invalid_inputs():
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"9x8 .*factor 2.*8x8"):
        tokenizer.encode(jnp.zeros((1, 9, 8, 3)))
    with pytest.raises(ValueError, match=r"\(batch, height, width, 3\)"):
        tokenizer.encode(jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="integers"):
        tokenizer.decode(jnp.zeros((1, 4, 4)))
    with pytest.raises(ConfigError, match=r"patch: .*0"):
        VQConfig(patch=0)
    with pytest.raises(ConfigError, match="attention_levels: 2 "):
        VQGAN(dataclasses.replace(TINY, attention_levels=(2,)), rngs=nnx.Rngs(0))

"""Google's MaskGIT: its files in and out, its two networks against a plain NumPy twin, and what it cannot do."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from flax.serialization import msgpack_restore, msgpack_serialize
from helpers import google_twin as twin

from maskgil_jax import cli, load
from maskgil_jax.checkpoints.weights import load_generator, load_tokenizer, load_weights
from maskgil_jax.config import MASKGIT_PRESETS, MASKGIT_VQ_PRESETS, ConfigError, DecodeConfig, MaskGITConfig, MaskGITVQConfig
from maskgil_jax.convert.main import convert, export, export_file, inspect
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.decoding.masked import decode
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.models.maskgit import MaskGIT
from maskgil_jax.networks import abstract_params, count_params, flatten, unflatten
from maskgil_jax.runtime.mesh import make_mesh, shardings
from maskgil_jax.tokenizers.maskgit_vqgan import MaskGITVQGAN

CODES, CLASSES = 24, 5
VQ = {"channels": 32, "multipliers": (1, 1, 2), "res_blocks": 2, "codebook": (CODES, 8)}  # 2: a shortcut, in both directions
BERT = {"rows": CODES + CLASSES + 1, "places": 10, "width": 32, "heads": 4, "mlp": 48, "depth": 2}
RUN = {"levels": 3, "res_blocks": 2}


@functools.cache
def state_of(part: str) -> dict[str, np.ndarray]:
    return twin.draw(twin.tokenizer_shapes(**VQ) if part == "tokenizer" else twin.transformer_shapes(**BERT))


def write(path: pathlib.Path, state: dict[str, np.ndarray]) -> pathlib.Path:
    path.write_bytes(msgpack_serialize({"params": unflatten(state)}))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A pipeline folder, converted from two files without an ending, as published."""
    out = tmp_path_factory.mktemp("google")
    for part, options in (("tokenizer", {"image_size": 12}), ("generator", {"num_classes": CLASSES})):
        convert(write(out / f"{part}_checkpoint", state_of(part)), out / part, options=options)
    return out


def assert_close(got, run, state):
    """Within ten times the twin's own float32 error, the rule for every reference here."""
    exact = run({name: array.astype(np.float64) for name, array in state.items()})
    rounded = run(state)
    assert rounded.dtype == np.float32 and np.abs(exact).max() > 0.3
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=10 * np.abs(rounded - exact).max())


# ------------------------------------------------------------------------------------------------ the networks
@pytest.mark.parametrize("size", [(12, 12), (8, 20)])
def test_maskgit_vqgan_equals_plain_numpy(folder, size):
    tokenizer, state = load_tokenizer(folder), state_of("tokenizer")
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    z = np.asarray(jax.jit(lambda t, x: t.latents(x))(tokenizer, images))
    assert_close(z, lambda s: twin.latents(s, images, **RUN), state)
    ranked = np.sort(distances := twin.distances(state, z.astype(np.float64)), axis=-1)
    assert (ranked[..., 1] - ranked[..., 0]).min() > 1e-3, "no code is chosen by rounding"
    codes = np.asarray(jax.jit(lambda t, x: t.encode(x))(tokenizer, images))
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    assert codes.dtype == np.int32 and len(np.unique(codes)) > 3
    given = rng.integers(0, CODES, codes.shape)
    pixels = np.asarray(jax.jit(lambda t, c: t.decode(c))(tokenizer, given))
    assert_close(pixels, lambda s: twin.decode(s, given, **RUN), state)
    assert pixels.shape == images.shape


def logits_of(generator, tokens, labels, **options):
    run = jax.jit(lambda g, t, c: g(t, c, **options))
    return run(generator, jnp.asarray(tokens, jnp.int32), ClassCondition(jnp.asarray(labels, jnp.int32)))


def test_maskgit_transformer_equals_plain_numpy(folder):
    generator, state = load_generator(folder), state_of("generator")
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, CODES, (3, 9)), np.array([0, 2, CLASSES - 1])
    tokens[0], tokens[1, ::2] = -1, -1  # [MASK] in the published code
    got = logits_of(generator, np.where(tokens == -1, generator.cfg.mask_id, tokens), labels)
    assert got.dtype == jnp.float32 and got.shape == (3, 9, CODES)
    assert_close(got, lambda s: twin.logits(s, tokens, labels, CODES, BERT["depth"]), state)


def test_maskgit_attention_kernels_have_the_layout_of_flax():
    """The names and shapes of linen's own attention, and its numbers: the twin's are typed by hand."""
    x = np.random.default_rng(0).normal(size=(2, 5, 32)).astype(np.float32)
    theirs = linen.MultiHeadDotProductAttention(num_heads=4, qkv_features=32)
    p = twin.under(state_of("generator"), "TransformerLayer_0/Attention_0/self_attention")
    shapes = jax.eval_shape(lambda: theirs.init(jax.random.key(0), x))["params"]
    assert {name: leaf.shape for name, leaf in flatten(shapes).items()} == {name: array.shape for name, array in p.items()}
    got = theirs.apply({"params": unflatten(p)}, x)
    np.testing.assert_allclose(twin.attention(p, x), got, atol=1e-5)


def test_maskgit_presets_have_the_published_sizes():
    for shapes, sizes, cfg in (
        (twin.tokenizer_shapes, twin.TOKENIZER, MASKGIT_VQ_PRESETS["256"]),
        (twin.transformer_shapes, twin.TRANSFORMER, MASKGIT_PRESETS["256"]),
        (twin.transformer_shapes, twin.TRANSFORMER | {"places": 1025}, MASKGIT_PRESETS["512"]),
    ):
        listing = shapes(**sizes)
        plan, problems = make_plan({name: (shape, np.dtype("float32")) for name, shape in listing.items()})
        assert not problems and plan.cfg == cfg
        assert plan.parameters == count_params(cfg) == sum(np.prod(shape) for shape in listing.values())


def test_maskgit_dropout_acts_in_training_only(folder):
    generator = load_generator(folder)
    tokens, label = jnp.zeros((2, 9), jnp.int32), ClassCondition(jnp.zeros(2, jnp.int32))
    hidden = jax.jit(lambda g, key_b: g.hidden(tokens, label, key_b=key_b))
    first, second = hidden(generator, jax.random.split(jax.random.key(0), 2))
    assert float(jnp.abs(first - second).max()) > 0.1, "every image has its own key"
    first, second = hidden(generator, None)
    np.testing.assert_array_equal(first, second)


def test_maskgit_in_bfloat16_gives_float32_outputs():
    images = jnp.zeros((1, 8, 8, 3))
    for cfg, call in (
        (MaskGITVQConfig(32, (1, 2), 1, 8, 4, dtype="bfloat16"), lambda t: (t.latents(images), t.decode(t.encode(images)))),
        (
            MaskGITConfig(
                codebook_size=8, num_classes=3, grid=(2, 2), width=16, depth=1, heads=2, mlp_width=16, dtype="bfloat16"
            ),
            lambda g: (g(jnp.zeros((1, 4), jnp.int32), ClassCondition(jnp.zeros(1, jnp.int32))),),
        ),
    ):
        network = {MaskGITVQConfig: MaskGITVQGAN, MaskGITConfig: MaskGIT}[type(cfg)]
        outputs = jax.eval_shape(lambda n=network, c=cfg, f=call: f(n(c, rngs=nnx.Rngs(0))))
        assert {leaf.dtype for leaf in outputs} == {jnp.dtype("float32")}


def test_maskgit_parameters_all_have_a_sharding():
    for cfg in (MASKGIT_VQ_PRESETS["256"], MASKGIT_PRESETS["256"]):
        specs = flatten(shardings(abstract_params(cfg), make_mesh(data=2, fsdp=2, tensor=2)))
        if isinstance(cfg, MaskGITConfig):
            split = {name.rsplit("/", 1)[0] for name, sharding in specs.items() if any(sharding.spec)}
            inside = {f"layers/{n}" for n in ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/up", "mlp/down")}
            assert split == inside | {"tokens", "positions", "last_linear"}


# ------------------------------------------------------------------------------------------------ sampling
def test_maskgit_pipeline_samples_as_published(folder):
    pipeline = load(folder)
    assert pipeline.cfg == DecodeConfig(16, "cosine", "gamma", guidance=1.0)
    images = pipeline([0, CLASSES - 1], seed=3)
    assert images.shape == (2, 12, 12, 3) and images.dtype == np.uint8 and (images[0] != images[1]).any()


def test_maskgit_decode_keeps_given_tokens_and_leaves_no_mask(folder):
    generator = load_generator(folder)
    given = jnp.full((2, 9), generator.cfg.mask_id).at[:, 4].set(7)
    condition = ClassCondition(jnp.array([1, 2]))
    out = np.asarray(decode(generator, condition, jax.random.key(0), DecodeConfig(3, guidance=1.0), given))
    assert (out[:, 4] == 7).all() and out.min() >= 0 and out.max() < CODES


def test_maskgit_refuses_guidance_and_other_grids(folder):
    generator = load_generator(folder)
    condition = ClassCondition(jnp.array([1, 2]))
    for cfg in (DecodeConfig(2, guidance=2.0), DecodeConfig(2, guidance=1.0, guidance_ramp="linear")):
        with pytest.raises(ConfigError, match=r"guidance: this MaskGIT has no null class.*guidance=1"):
            decode(generator, condition, jax.random.key(0), cfg)
    with pytest.raises(ConfigError, match=r"grid: learned positions exist for \(3, 3\) only, got \(1, 9\)"):
        decode(generator, condition, jax.random.key(0), DecodeConfig(2, guidance=1.0), grid=(1, 9))
    with pytest.raises(ConfigError, match=r"tokens: expected \(batch, 3 \* 3\)"):
        generator(jnp.zeros((2, 8), jnp.int32), condition)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match=r"10x8 .*factor 4.*8x8"):
        tokenizer.encode(jnp.zeros((1, 10, 8, 3)))
    with pytest.raises(ValueError, match="integers"):
        tokenizer.decode(jnp.zeros((1, 2, 2)))
    with pytest.raises(ConfigError, match="image_size: 90 is not a multiple of the downsampling factor 16"):
        MaskGITVQConfig(image_size=90)


# ------------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_files_come_back_bit_for_bit(part, folder, tmp_path):
    family, state = {"tokenizer": "maskgit-jax-tokenizer", "generator": "maskgit-jax"}[part], state_of(part)
    weights = load_weights(folder, part)
    assert weights.about["source"]["family"] == family and weights.about["source"]["format"] == "flax msgpack"
    back = export_file(folder / part, tmp_path / "back.msgpack", family)
    tree = msgpack_restore(back.read_bytes())
    assert list(tree) == ["params"]
    arrays = flatten(tree["params"])
    assert arrays.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    convert(back, tmp_path / "again", options={"image_size": 12} if part == "tokenizer" else {"num_classes": CLASSES})
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (folder / part / "model.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "back.msgpack"], "nothing temporary is left"


def drop(name):
    return lambda s: {n: a for n, a in s.items() if n != name}


def put(name, *shape):
    return lambda s: s | {name: np.zeros(shape, np.float32)}


KERNEL = "TransformerLayer_1/Attention_0/self_attention/key/kernel"
WRONG = {
    "missing": ("generator", drop(KERNEL), rf"{KERNEL}: missing; this family needs it, of shape \(32, 4, 8\)"),
    "a table of types": ("generator", put("Embed_0/type_embeddings/embedding", 2, 32), "type_embeddings/embedding: unknown"),
    "heads": ("generator", put(KERNEL, 32, 8, 4), r"key/kernel: has shape \(32, 8, 4\), expected \(32, 4, 8\)"),
    "grid": (
        "generator",
        put("Embed_0/position_embeddings/embedding", 11, 32),
        "its 10 positions are not those of a square",
    ),
    "no codebook": (
        "generator",
        put("Embed_0/word_embeddings/embedding", 7, 32),
        r"7 rows cannot hold 5 classes.*num_classes=N",
    ),
    "bias": ("tokenizer", put("encoder/ResBlock_0/Conv_0/bias", 32), "encoder/ResBlock_0/Conv_0/bias: unknown"),
    "shortcut": (
        "tokenizer",
        put("encoder/ResBlock_4/Conv_2/kernel", 1, 1, 32, 64),  # of a network that reads the block's input
        r"ResBlock_4/Conv_2/kernel: has shape \(1, 1, 32, 64\), expected \(1, 1, 64, 64\)",
    ),
    "blocks": (
        "tokenizer",
        lambda s: {n: a for n, a in s.items() if "encoder/ResBlock_7" not in n},
        "7 residual blocks are not as many for each of 3 levels and the middle",
    ),
    "widths": ("tokenizer", put("encoder/ResBlock_4/Conv_0/kernel", 3, 3, 32, 63), r"level widths \[32, 32, 63\] are not"),
    "nan": ("tokenizer", lambda s: s | {"quantizer/codebook": np.full((CODES, 8), np.nan)}, "quantizer/codebook holds 192 NaN"),
}


@pytest.mark.parametrize("part,spoil,match", WRONG.values(), ids=WRONG)
def test_wrong_files_are_named_and_leave_nothing(part, spoil, match, tmp_path):
    bad = write(tmp_path / "bad", spoil(dict(state_of(part))))
    with pytest.raises(BadWeightFile, match=match) as error:
        convert(bad, tmp_path / "out", options={"num_classes": CLASSES} if part == "generator" else None)
    assert str(error.value).startswith(str(bad)) and list(tmp_path.iterdir()) == [bad]


def test_exports_say_what_they_can_be(folder, tmp_path):
    for weights, out, family, match in (
        ("generator", "back.safetensors", "maskgit-jax", r"back\.safetensors: expected a name that ends in \.msgpack"),
        ("tokenizer", "back.msgpack", "llamagen-vq", r"ends in \.safetensors or \.pt"),
        ("tokenizer", "back.safetensors", "llamagen-vq", "of MaskGITVQConfig, llamagen-vq has VQConfig"),
    ):
        with pytest.raises(ValueError, match=match):
            export_file(folder / weights, tmp_path / out, family)
    with pytest.raises(ValueError, match="holds a maskgit_vqgan, expected a generator"):
        load_generator(folder / "tokenizer")
    with pytest.raises(ValueError, match="is a network of MaskGITConfig, maskgit-jax-tokenizer has MaskGITVQConfig"):
        export(folder / "generator", "maskgit-jax-tokenizer")
    assert not list(tmp_path.iterdir())


def test_convert_command_takes_google_files(folder, tmp_path, capsys):
    file = folder / "generator_checkpoint"
    lines = inspect(folder / "tokenizer_checkpoint").splitlines()
    assert ["encoder/ResBlock_4/Conv_2/kernel", "1x1x64x64", "float32"] in [line.split() for line in lines]
    assert any(line.startswith("family: maskgit-jax-tokenizer, Google's") for line in lines) and lines[-1] == "can be converted"
    assert cli.main(["convert", str(file), str(tmp_path / "out"), "--set", f"num_classes={CLASSES}"]) == 0
    assert "recognised as maskgit-jax: Google's" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "out"), str(tmp_path / "back.msgpack"), "--to", "maskgit-jax"]) == 0
    assert flatten(msgpack_restore((tmp_path / "back.msgpack").read_bytes())["params"]).keys() == state_of("generator").keys()

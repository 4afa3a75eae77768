"""Halton-MaskGIT's Transformer against the published forward pass, its sizes, its files there and back,
and its training."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gpt_weights import published_params, published_tensors
from helpers.recipe import draw, load_case
from helpers.torch_names import state_hash
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_generator
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.config import ADALN_PRESETS, AdaLNConfig, ConfigError, DecodeConfig, from_dict
from maskgil_jax.convert.main import convert, export_file
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.models.adaln import AdaLN
from maskgil_jax.models.condition import ClassCondition
from maskgil_jax.networks import abstract_params, build, count_params, create, params_of
from maskgil_jax.runtime.mesh import make_mesh, shardings
from maskgil_jax.training.generator import Objective, model_options

CONFIG, IO = load_case("halton/tiny")
H = CONFIG["hparams"]
TINY = AdaLNConfig(
    codebook_size=H["codebook_size"],
    num_classes=H["nclass"],
    grid=(H["input_size"],) * 2,
    width=H["hidden_dim"],
    depth=H["depth"],
    heads=H["heads"],
    mlp_width=256,  # two thirds of the published 4 * 32, rounded up to 256
    registers=H["register"],
)
TOKENS = jnp.asarray(IO["in.idx"].reshape(2, -1))
LABELS = ClassCondition(jnp.asarray(IO["in.cond"]))


def published_state() -> dict[str, np.ndarray]:
    state = {name: draw(name, t.shape, CONFIG["recipe"]) for name, t in published_tensors("halton", TINY).items()}
    return state | {"head.weight": state["tok_emb.weight"]}


@pytest.fixture(scope="module")
def params():
    state = published_state()
    return published_params("halton", TINY, lambda name, shape: state[name])


def random_params(cfg):
    """Parameters of a new network, with random numbers where it starts at zero and would hide its blocks."""
    start = params_of(create(cfg, jax.random.key(0)))
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([leaf + 0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)])


# ------------------------------------------------------------------------------------------------ the network
def test_adaln_equals_the_published_network(params):
    assert TINY.heads * TINY.head_dim < TINY.width, "the case covers heads that are narrower than the network together"
    run = jax.jit(lambda m, c: m.logits(m.hidden(TOKENS, c)))
    model = build(TINY, params)
    dropped = jnp.where(jnp.asarray(IO["in.drop_label"]), model.null_condition(LABELS).label_b, LABELS.label_b)
    for name, condition in (("logits", LABELS), ("logits_drop", ClassCondition(dropped))):
        got = run(model, condition)
        np.testing.assert_allclose(got, IO[f"out.{name}"], atol=CONFIG["tolerance"][name]["atol"], rtol=1e-5)
    sampled = model(TOKENS, LABELS)
    assert sampled.shape == (2, 16, TINY.codebook_size) and sampled.dtype == jnp.float32, "the [MASK] logit is never sampled"


@pytest.mark.parametrize("size,millions", {"tiny": 23.0, "small": 69.3, "base": 142.224641, "large": 479.984641}.items())
def test_adaln_presets_have_the_published_sizes(size, millions):
    """Exact where there is a listing of the original class, as rounded by its authors where there is none."""
    count = count_params(ADALN_PRESETS[size]) / 1e6
    assert count == millions or round(count, 1) == millions
    if size == "small":
        assert abstract_params(ADALN_PRESETS[size])["layers"]["attn"]["q"]["kernel"].shape == (12, 512, 510)


@jax.jit
def answer(model, condition):
    return model(TOKENS, condition)


def test_adaln_blocks_are_the_identity_at_initialisation():
    model, other = (create(AdaLNConfig(**{**vars(TINY), "depth": depth}), jax.random.key(0)) for depth in (3, 1))
    np.testing.assert_allclose(answer(model, LABELS), answer(other, LABELS), atol=1e-6)
    assert float(jnp.abs(answer(model, LABELS) - answer(model, model.null_condition(LABELS))).max()) > 1e-3


@pytest.mark.slow
def test_adaln_is_the_same_scanned_unrolled_and_rematerialised():
    params, outs, keys = random_params(TINY), [], jax.random.split(jax.random.key(3), 2)
    for options in (dict(layers="scan", remat="dots"), dict(layers="unroll")):
        cfg = AdaLNConfig(**{**vars(TINY), **options})

        def loss(p, cfg=cfg):
            return jnp.mean(build(cfg, p)(TOKENS, LABELS, key_b=jax.random.clone(keys)) ** 2)

        outs.append(jax.jit(jax.value_and_grad(loss))(params))
    chex.assert_trees_all_close(outs[1], outs[0], rtol=2e-4, atol=2e-5)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(outs[0][1])), "every parameter takes part"


@pytest.mark.slow
def test_adaln_runs_without_registers():
    cfg = AdaLNConfig(**{**vars(TINY), "registers": 0})
    params = random_params(TINY)
    bare = {name: leaf for name, leaf in params.items() if name != "registers"}
    with_registers, without = answer(build(TINY, params), LABELS), answer(build(cfg, bare), LABELS)
    assert without.shape == with_registers.shape and float(jnp.abs(without - with_registers).max()) > 1e-3


def test_dropout_does_not_depend_on_how_the_batch_is_split():
    cfg = AdaLNConfig(**{**vars(TINY), "dropout": 0.5})
    model, keys = build(cfg, random_params(cfg)), jax.random.split(jax.random.key(1), 2)
    hidden = jax.jit(lambda tokens, labels, key_b: model.hidden(tokens, ClassCondition(labels), key_b=key_b))
    whole = hidden(TOKENS, LABELS.label_b, jax.random.clone(keys))
    np.testing.assert_allclose(whole[1:], hidden(TOKENS[1:], LABELS.label_b[1:], keys[1:]), atol=1e-5)
    assert float(jnp.abs(whole - hidden(TOKENS, LABELS.label_b, None)).max()) > 0.1


def test_adaln_in_bfloat16_gives_float32_logits():
    cfg = AdaLNConfig(**{**vars(TINY), "dtype": "bfloat16"})
    params = random_params(TINY)
    wide, narrow = build(TINY, params), build(cfg, params)
    assert jax.eval_shape(narrow.hidden, TOKENS, LABELS).dtype == jnp.bfloat16
    ours, reference = answer(narrow, LABELS), answer(wide, LABELS)
    assert ours.dtype == jnp.float32 and 0 < float(jnp.abs(ours - reference).max()) < 0.05 * float(jnp.abs(reference).max())


def test_adaln_parameters_all_have_a_sharding():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    layout = shardings(abstract_params(ADALN_PRESETS["base"]), mesh)
    assert layout["layers"]["modulation"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert layout["last_norm"]["modulation"]["kernel"].spec == P("fsdp", "tensor")
    assert layout["registers"]["embedding"].spec == P(None, "fsdp")


def test_adaln_names_invalid_inputs():
    model = create(TINY, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"learned positions exist for \(4, 4\) only, got \(2, 8\)"):
        model(TOKENS, LABELS, grid=(2, 8))
    with pytest.raises(ConfigError, match=r"grid \(4, 4\), got shape \(2, 9\)"):
        model(jnp.zeros((2, 9), jnp.int32), LABELS)
    for change, match in (
        (dict(heads=0), "heads: must be a whole number >= 1, got 0"),
        (dict(registers=-1), "registers: must be a whole number >= 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            AdaLNConfig(**{**vars(TINY), **change})


# ------------------------------------------------------------------------------------------------ files
@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path, state = tmp_path_factory.mktemp("halton") / "file.safetensors", published_state()
    assert state_hash(state) == CONFIG["state_sha256"], "the table names every tensor and no other"
    save_file({f"_orig_mod.{name}": array.copy() for name, array in state.items()}, path)
    return path


def test_adaln_file_converts_to_the_published_logits_and_exports(published, tmp_path):
    done = convert(published, tmp_path / "out", options={"heads": TINY.heads})
    assert (done.plan.name, done.plan.cfg) == ("halton", TINY)
    assert done.plan.ignored == {"head.weight": "the head, tied to the token table"}
    model = load_generator(tmp_path / "out")
    assert isinstance(model, AdaLN)
    got = model.logits(model.hidden(TOKENS, LABELS))
    np.testing.assert_allclose(got, IO["out.logits"], atol=CONFIG["tolerance"]["logits"]["atol"], rtol=1e-5)
    back = load_file(export_file(tmp_path / "out", tmp_path / "back.safetensors", "halton"))
    state = published_state()
    assert back.keys() == state.keys() and all(np.array_equal(back[name], state[name]) for name in state)
    convert(tmp_path / "back.safetensors", tmp_path / "again", options={"heads": TINY.heads})
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == again


def without(name):
    return lambda state: {n: a for n, a in state.items() if n != name}


def test_adaln_file_may_lack_the_tied_head(tmp_path):
    save_file(without("head.weight")(published_state()), tmp_path / "file.safetensors")
    assert convert(tmp_path / "file.safetensors", tmp_path / "out", options={"heads": TINY.heads}).plan.ignored == {}


WRONG = {
    "untied": (lambda s: s | {"head.weight": s["head.weight"] + 1}, r"head\.weight: should equal tok_emb\.weight and does not"),
    "missing": (without("last_norm.mlp.1.bias"), r"last_norm\.mlp\.1\.bias: missing"),
    "downsampling": (lambda s: s | {"in_proj.weight": np.zeros((32, 32, 2, 2), np.float32)}, r"in_proj\.weight: unknown"),
    "no square": (
        lambda s: s | {"pos_emb.weight": s["pos_emb.weight"][:15]},
        r"pos_emb\.weight: its 15 positions are not those of a square grid: --set grid",
    ),
}


@pytest.mark.parametrize("spoil,match", WRONG.values(), ids=WRONG)
def test_adaln_converter_refuses_wrong_files(spoil, match, tmp_path):
    save_file({n: a.copy() for n, a in spoil(published_state()).items()}, tmp_path / "bad.safetensors")
    with pytest.raises(BadWeightFile, match=match):
        convert(tmp_path / "bad.safetensors", tmp_path / "out", options={"heads": TINY.heads})
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


# ------------------------------------------------------------------------------------------------ training
def test_adaln_run_file_equals_the_published_network():
    config = read_run_file("c2i_halton_b", [])
    cfg = model_options(config.model.to_dict(), codebook_size=16384, num_classes=1000, grid=(16, 16))
    assert cfg == AdaLNConfig(**{**vars(ADALN_PRESETS["base"]), "dtype": "bfloat16", "remat": "dots"})
    assert from_dict(DecodeConfig, config.decode.to_dict()).guidance == 1.7
    assert from_dict(Objective, config.objective.to_dict()).label_smoothing == 0.0


@pytest.mark.slow
def test_adaln_trains_and_samples(tmp_path):
    """The whole loop with the shipped tokenizer, and a picture by masked decoding with guidance at the end."""
    sizes = {"width": 32, "depth": 2, "heads": 3, "mlp_width": 64}
    options = {"model.family": "adaln", "model.preset": "tiny", **{f"model.{name}": value for name, value in sizes.items()}}
    options |= {"total_steps": 2, "sample_every": 2, "sample_count": 8, "log_every": 1, "decode.steps": 2}
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    assert cli.main(["train", "--config", "debug", "--workdir", str(tmp_path), *flags]) == 0
    assert isinstance(load_generator(tmp_path / "weights"), AdaLN)
    assert (tmp_path / "weights" / "generator" / "config.json").exists()

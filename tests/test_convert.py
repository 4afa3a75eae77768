"""Published files -> weights folders -> the published numbers, and back bit for bit.

Wrong files raise and leave no folder.
"""

import pathlib
import tracemalloc
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gpt_weights import llama_config, published_tensors
from helpers.recipe import GOLDEN, draw, load_case
from helpers.torch_names import draw_all, generated, golden, state_hash
from safetensors.numpy import load_file, save_file

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_generator, load_tokenizer, load_weights
from maskgil_jax.convert.main import convert, export, export_file, inspect, list_families
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.models.condition import ClassCondition


# ------------------------------------------------------------------------------------------------ there
def tokenizer_state(name: str) -> dict[str, np.ndarray]:
    meta, _ = golden("vq", name)
    state = draw_all(meta["shapes"], meta["recipe"], {"quantize.codebook_used": np.zeros(65536, np.float32)})
    assert state_hash(state) == meta["state_sha256"]
    return state


def generator_state(family: str, case: str, cfg) -> dict[str, np.ndarray]:
    """The weights of a reference case; the hash proves that the table names all of them and no other."""
    config, _ = load_case(case)
    state = {name: draw(name, t.shape, config["recipe"]) for name, t in published_tensors(family, cfg).items()}
    assert state_hash(state) == config["state_sha256"]
    return state


def llamagen_config(**changes):
    h = load_case("llamagen_gpt/c2i_tiny")[0]["hparams"]
    layout = dict(grid=(8, 8), positions="2d", class_position="first", mask_logit=False, causal=True, dropout=0.1)
    return llama_config(h, **(layout | changes))


def maskgil_config():
    return llama_config(load_case("maskgil_gpt/tiny")[0]["hparams"], dropout=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def maskgil_file(folder):
    return write(folder / "maskgil.safetensors", generator_state("maskgil", "maskgil_gpt/tiny", maskgil_config()))


@pytest.fixture(scope="module")
def llamagen_file(folder):
    state = generator_state("llamagen-c2i", "llamagen_gpt/c2i_tiny", llamagen_config())
    return write(folder / "llamagen.safetensors", {f"_orig_mod.module.{name}": array for name, array in state.items()})


def write(path: pathlib.Path, state: dict[str, np.ndarray]) -> pathlib.Path:
    save_file({name: np.array(array, order="C") for name, array in state.items()}, path)
    return path


def slices(x: np.ndarray, n: int) -> np.ndarray:
    flat = x.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, n).astype(int)]


SMALL_TOKENIZERS = {
    "llamagen_vq16": "llamagen-vq",
    "taming_f16_mid": "taming-vqgan",
    "chameleon_mid": "chameleon-vqgan",
    "open_magvit2": "open-magvit2",
}


@pytest.mark.parametrize(
    "name,family",
    [pytest.param(n, f, marks=[pytest.mark.slow] * (n != "open_magvit2"), id=n) for n, f in SMALL_TOKENIZERS.items()],
)
def test_converted_tokenizers_give_the_published_codes_and_pixels(name, family, tmp_path):
    state = tokenizer_state(name)
    loss = {"loss.logvar": np.zeros(1, np.float32)} if family != "llamagen-vq" else {}
    file = write(tmp_path / "file.safetensors", state | loss)
    done = convert(file, tmp_path / "out")
    assert done.plan.name == family and f"recognised as {family}" in str(done)
    tokenizer = load_tokenizer(tmp_path / "out")
    meta, arrays = golden("vq", name)
    part_of_file = {"open-magvit2": "ema."}.get(family, "")  # this file holds its weights twice
    images = arrays["in.img1"] if "in.img1" in arrays else generated(meta["generated"]["img1"])
    got = jax.jit(lambda t, x: t.encode(x))(tokenizer, images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(got.reshape(-1), arrays[f"out.{part_of_file}indices1"])
    pixels = np.asarray(jax.jit(lambda t, c: t.decode(c))(tokenizer, arrays["in.codes1"])).transpose(0, 3, 1, 2)
    compared = 0
    for part, value in {"": pixels, ".slice32": slices(pixels, 32), ".slice512": slices(pixels, 512)}.items():
        key = f"{part_of_file}rec_codes1{part}"
        if f"out.{key}" in arrays:
            np.testing.assert_allclose(value, arrays[f"out.{key}"], rtol=1e-5, atol=meta["atol"][key])
            compared += 1
    assert compared
    back = export(tmp_path / "out", family)
    state = {n: a for n, a in state.items() if not part_of_file or n.startswith("model_ema.")}
    assert back.keys() == state.keys() and all(np.array_equal(back[n], state[n]) for n in state)


def condition(io, name="in.cond"):
    return ClassCondition(jnp.asarray(io[name], jnp.int32))


def test_converted_maskgil_gives_the_published_logits(maskgil_file, tmp_path):
    config, io = load_case("maskgil_gpt/tiny")
    heads = config["hparams"]["n_head"]
    done = convert(maskgil_file, tmp_path / "out", options={"heads": heads})
    assert done.plan.cfg == maskgil_config() and "assumed: grid = 16x16" in str(done)
    model = load_generator(tmp_path / "out")
    got = jax.jit(lambda m, t, c: m.logits(m.hidden(t, c)))(model, io["in.idx"].reshape(2, -1).astype(np.int32), condition(io))
    np.testing.assert_allclose(got, io["out.logits"], rtol=1e-5, atol=config["tolerance"]["logits"]["atol"])


def test_converted_llamagen_gives_the_published_logits(llamagen_file, tmp_path):
    config, io = load_case("llamagen_gpt/c2i_tiny")
    done = convert(llamagen_file, tmp_path / "out", options={"heads": 4, "grid": [8, 8]})
    assert done.plan.cfg == llamagen_config(mlp_width=done.plan.cfg.mlp_width)
    model = load_generator(tmp_path / "out")
    assert not np.asarray(model.tokens.embedding[-1]).any(), "LlamaGen has no [MASK]: zeros"
    got = jax.jit(lambda m, t, c: m(t, c))(model, io["in.codes"].astype(np.int32), condition(io))
    np.testing.assert_allclose(got, io["out.train_logits"], rtol=1e-5, atol=config["tolerance"]["train_logits"]["atol"])


def test_converted_besnier_gives_the_published_logits(tmp_path):
    """From the trainer's own .pth, which also holds counters and optimizer state."""
    config, io = load_case("mask_transformer/img64")
    done = convert(GOLDEN / "torch_files" / "current.pth", tmp_path / "out", options={"heads": 4, "num_classes": 10})
    assert done.plan.name == "besnier-maskgit" and done.container == "model_state_dict"
    model = load_generator(tmp_path / "out")
    got = jax.jit(lambda m, t, c: m.logits(m.hidden(t, c)))(model, io["in.idx"].reshape(2, -1).astype(np.int32), condition(io))
    np.testing.assert_allclose(got, io["out.logits"], rtol=1e-5, atol=config["tolerance"]["logits"]["atol"])
    assert state_hash(export(tmp_path / "out", "besnier-maskgit")) == config["state_sha256"]
    source = load_weights(tmp_path / "out").about["source"]
    assert (source["family"], source["file"], source["licence"], len(source["sha256"])) == (
        "besnier-maskgit",
        "current.pth",
        "MIT",
        64,
    )


# ------------------------------------------------------------------------------------------------ back again
def test_exports_convert_back_bit_for_bit(maskgil_file, llamagen_file, tmp_path):
    for family, file, options in (
        ("maskgil", maskgil_file, {"heads": maskgil_config().heads}),
        ("llamagen-c2i", llamagen_file, {"heads": 4, "grid": 8}),
    ):
        first, second = tmp_path / family / "first", tmp_path / family / "second"
        convert(file, first, options=options)
        exported = export_file(first, tmp_path / family / "back.safetensors", family)
        state = {name.removeprefix("_orig_mod.module."): array for name, array in load_file(file).items()}
        back = load_file(exported)
        assert back.keys() == state.keys() and all(np.array_equal(back[n], state[n]) for n in state)
        convert(exported, second, options=options)
        assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_export_refuses_networks_the_family_cannot_express(maskgil_file, tmp_path):
    out = tmp_path / "out"
    convert(maskgil_file, out, options={"heads": maskgil_config().heads})
    for to, match in {
        "llamagen-c2i": "has positions = '1d_shifted', llamagen-c2i always has '2d'",
        "besnier-maskgit": "is a network of LlamaConfig, besnier-maskgit has BertConfig",
        "maskgit-jax": "is a network of LlamaConfig, maskgit-jax has MaskGITConfig",
        "taming-gumbel": "recognised as taming-gumbel",
        "maskgill": "Did you mean 'maskgil'",
    }.items():
        with pytest.raises(ValueError, match=match):
            export(out, to)
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.pt"):
        export_file(out, tmp_path / "back.bin", "maskgil")
    (tmp_path / "back.safetensors").touch()
    with pytest.raises(ValueError, match=r"back\.safetensors: exists"):
        export_file(out, tmp_path / "back.safetensors", "maskgil")


# ------------------------------------------------------------------------------------------------ wrong files
def rename(old, new):
    return lambda state: state | {new: state.pop(old)}


def change(name, to):
    return lambda state: state | {name: to(state[name])}


def swap(a, b):
    return lambda state: state | {a: state[b], b: state[a]}


W1, W2 = "layers.0.feed_forward.w1.weight", "layers.1.feed_forward.w2.weight"
WRONG = {
    "unknown": (lambda s: s | {"layers.0.attention.bias": np.zeros(3, np.float32)}, r"layers\.0\.attention\.bias: unknown"),
    "a layer too many": (
        lambda s: s | {"layers.7.ffn_norm.weight": s["norm.weight"]},
        r"layers\.2\.attention_norm\.weight: missing",
    ),
    "missing": (lambda s: {n: a for n, a in s.items() if n != W2}, r"w2\.weight: missing; this family needs it, of shape \("),
    "renamed": (rename(W1, "layers.0.feed_forward.w4.weight"), r"layers\.0\.feed_forward\.w1\.weight: missing"),
    "shape": (change(W2, np.transpose), r"w2\.weight: has shape \(\d+, \d+\), expected \("),
    "swapped": (
        swap("tok_emb.weight", "output.weight"),
        r"tok_emb\.weight: its \d+ rows cannot hold output\.weight's \d+ codes",
    ),
    "swapped layers' kinds": (swap(W1, W2), "has shape .*expected"),
    "whole numbers": (change(W2, lambda a: a.astype(np.int32)), r"w2\.weight: has type int32, expected floating point"),
    "nan": (change(W2, lambda a: np.full_like(a, np.nan)), r"w2\.weight holds \d+ NaN and 0 infinite values"),
    "axes": (change("norm.weight", lambda a: a[None]), r"norm\.weight: has shape \(1, \d+\), expected 1 axes"),
    "nothing known": (lambda s: {"a": np.zeros(3, np.float32)}, r"not recognised by its 1 names \(a \.\.\.\)"),
}


@pytest.mark.parametrize("spoil,match", WRONG.values(), ids=WRONG)
def test_wrong_files_raise_one_error_and_leave_no_folder(spoil, match, maskgil_file, tmp_path):
    bad = write(tmp_path / "bad.safetensors", spoil(dict(load_file(maskgil_file))))
    with pytest.raises(BadWeightFile, match=match) as error:
        convert(bad, tmp_path / "out", options={"heads": maskgil_config().heads})
    assert str(bad) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.safetensors"]


def test_problems_of_values_are_reported_in_one_error(maskgil_file, tmp_path):
    state = dict(load_file(maskgil_file))
    state[W1], state[W2] = (np.full_like(state[n], np.inf) for n in (W1, W2))
    with pytest.raises(BadWeightFile) as error:
        convert(write(tmp_path / "bad.safetensors", state), tmp_path / "out", options={"heads": maskgil_config().heads})
    assert [problem.split(" ")[0] for problem in error.value.problems] == [W2, W1]  # in the order of our own leaves
    with pytest.raises(BadWeightFile, match="output\\.weight holds values too large for float16"):
        state = dict(load_file(maskgil_file))
        state["output.weight"] = state["output.weight"] * 1e9
        big = write(tmp_path / "big.safetensors", state)
        convert(big, tmp_path / "out", dtype="float16", options={"heads": maskgil_config().heads})
    assert not (tmp_path / "out").exists()


def test_wrong_options_raise_naming_the_option(maskgil_file, tmp_path):
    for options, match in (
        (dict(family="maskgill"), "--family: unknown value 'maskgill'.*Did you mean 'maskgil'"),
        (dict(family="llamagen-vq"), r"encoder\.conv_in\.weight: missing; the sizes of the network are read from it"),
        (dict(family="taming-gumbel"), "recognised as taming-gumbel"),
        (dict(options={"colour": 3}), "--set: unknown value 'colour'; choose from heads, grid, codebook_size, "),
        (dict(options={"depth": 3}), "as maskgil: --set depth=3, but the file has 2"),
        (dict(options={"heads": 0}), "--set heads: expected a whole number, got 0"),
        (dict(options={"heads": 7}), r"wqkv\.weight: its \d+ rows are not 7 heads|width: \d+ is not a multiple of heads 7"),
        (dict(dtype="int8"), "--dtype: unknown value 'int8'"),
        (dict(key="ema"), "has no 'ema'"),
    ):
        with pytest.raises(ValueError, match=match):
            convert(maskgil_file, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_convert_replaces_only_a_conversion_of_the_same_file(maskgil_file, tmp_path):
    out, heads = tmp_path / "out", {"heads": maskgil_config().heads}
    convert(maskgil_file, out, options=heads)
    convert(maskgil_file, out, options=heads, dtype="float16")
    assert load_file(out / "model.safetensors")["norm/scale"].dtype == np.float16
    other = dict(load_file(maskgil_file))
    other["norm.weight"] = other["norm.weight"] + 1
    with pytest.raises(ValueError, match="converted from another file"):
        convert(write(tmp_path / "other.safetensors", other), out, options=heads)
    (out / "config.json").unlink()
    with pytest.raises(ValueError, match="exists and is no earlier conversion"):
        convert(maskgil_file, out, options=heads)


def test_free_space_is_checked_before_reading(maskgil_file, tmp_path, monkeypatch, capsys):
    """Before a long file is hashed and read, not after."""
    heads = ["--set", f"heads={maskgil_config().heads}"]
    monkeypatch.setattr("maskgil_jax.convert.writer._sha256", lambda _: pytest.fail("the work had begun"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
    assert cli.main(["convert", str(maskgil_file), str(tmp_path / "new" / "out"), *heads]) == 2
    assert "kB, 1.0 kB are free there; delete files" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert cli.main(["convert", str(maskgil_file), str(tmp_path / "file" / "out"), *heads]) == 2
    assert f"cannot write: {tmp_path / 'file'} is not a directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_convert_peak_memory_is_a_few_tensors(tmp_path):
    cfg = llamagen_config(width=256, depth=12, heads=4, mlp_width=512)
    state = {name: np.full(t.shape, 0.5, np.float32) for name, t in published_tensors("llamagen-c2i", cfg).items()}
    file = write(tmp_path / "big.safetensors", state)
    total, largest = file.stat().st_size, max(array.nbytes for array in state.values())
    convert(file, tmp_path / "first")  # what is imported and cached on the first call is not the file's doing
    del state
    tracemalloc.start()
    convert(file, tmp_path / "second")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * largest < total / 8, (peak, largest, total)


# ------------------------------------------------------------------------------------------------ the command
def test_commands_convert_inspect_export_exit_codes_and_messages(maskgil_file, tmp_path, capsys):
    heads = f"heads={maskgil_config().heads}"
    for argv, code in ((["convert", "--list"], 0), (["convert", str(maskgil_file)], 2)):
        with pytest.raises(SystemExit) as left:
            cli.main(argv)
        assert left.value.code == code
    printed = capsys.readouterr()
    assert list_families() in printed.out and "the following arguments are required: OUT" in printed.err
    assert cli.main(["inspect", str(maskgil_file)]) == 0
    printed = capsys.readouterr().out
    assert "tok_emb.weight" in printed and "family: maskgil" in printed and "types: float32 (17)" in printed
    assert cli.main(["convert", str(maskgil_file), "--set", heads, str(tmp_path / "out"), "--set", "grid=16x16"]) == 0
    assert "recognised as maskgil" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "out"), str(tmp_path / "back.safetensors"), "--to", "maskgil"]) == 0
    assert (tmp_path / "back.safetensors").exists()
    for argv, match in (
        (["convert", str(maskgil_file), str(tmp_path / "new"), "--set", "heads=two"], "expected NAME=N"),
        (["convert", str(tmp_path / "none.pt"), str(tmp_path / "new")], "no such file"),
        (["export", str(tmp_path / "out"), str(tmp_path / "b.safetensors"), "--to", "llamagen-vq"], "expected a"),
    ):
        capsys.readouterr()
        assert cli.main(argv) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and (match in error or "llamagen-vq" in error), error
    assert not (tmp_path / "new").exists()


def test_inspect_lists_a_file_of_no_family(tmp_path):
    text = inspect(write(tmp_path / "odd.safetensors", {"a.weight": np.zeros((2, 3), np.float16), "b": np.zeros((), np.int64)}))
    assert "a.weight  2x3     float16" in text and "b         scalar  int64" in text and "family: not recognised" in text
    assert "2 arrays, 7 values, 20 bytes" in text

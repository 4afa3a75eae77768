"""Configurations inside or next to a weight file: compared with its shapes,
used where no shape states a size, never run."""

import json
import time

import numpy as np
import pytest
from helpers.file_assembler import args_of, call, mapping, number, tensors_of, text, torch_zip
from helpers.gpt_weights import llama_config, published_tensors
from helpers.recipe import draw, load_case
from helpers.torch_names import draw_all, golden
from safetensors.numpy import save_file

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights
from maskgil_jax.convert.main import convert, inspect
from maskgil_jax.convert.readers.checkpoint import BadWeightFile
from maskgil_jax.convert.readers.sidecar import read_sidecar_configs

TAMING = """\
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: {dim}
    n_embed: {codes}
    ddconfig:
      double_z: false
      z_channels: {z}
      resolution: 256
      ch: {ch}
      ch_mult: {mult}
      num_res_blocks: 2
    lossconfig:
      params:
        n_embed: 7
        disc_in_channels: 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    meta, _ = golden("vq", "taming_f16_mid")
    state = draw_all(meta["shapes"], meta["recipe"])
    path = tmp_path_factory.mktemp("taming") / "last.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    return path


@pytest.fixture
def moved(file, tmp_path):
    """The file in a folder of its own, where a test may add configuration files."""
    path = tmp_path / "logs" / "checkpoints" / "last.safetensors"
    path.parent.mkdir(parents=True)
    path.symlink_to(file)
    return path


def sizes() -> dict:
    h = golden("vq", "taming_f16_mid")[0]["hparams"]
    dd = h["ddconfig"]
    return {"dim": h["embed_dim"], "codes": h["n_embed"], "z": dd["z_channels"], "ch": dd["ch"], "mult": dd["ch_mult"]}


@pytest.mark.slow
def test_agreeing_yaml_is_named_and_gives_the_image_size(moved, tmp_path):
    (moved.parent / "model.yaml").write_text(TAMING.format(**sizes()).replace("resolution: 256", "resolution: 384"))
    done = convert(moved, tmp_path / "out")
    assert "compared with model.yaml" in str(done) and done.plan.cfg.image_size == 384
    assert load_weights(tmp_path / "out").about["source"]["compared_with"] == ["model.yaml"]
    assert "configuration file: model.yaml" in inspect(moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change,says,override",
    [
        ({"codes": 16384}, "model.yaml says n_embed = 16384, the file has {codes}", "codebook_size={codes}"),
        ({"dim": 3}, "model.yaml says embed_dim = 3, the file has {dim}", "codebook_dim={dim}"),
        ({"z": 512}, "model.yaml says z_channels = 512, the file has {z}", "latent_dim={z}"),
        ({"mult": [1, 2]}, "model.yaml says ch_mult = 1x2, the file has {mult_x}", "multipliers={mult_x}"),
    ],
    ids=["codes", "width", "latents", "multipliers"],
)
def test_contradicting_yaml_is_refused_until_set_overrides(moved, tmp_path, capsys, change, says, override):
    (moved.parent / "model.yaml").write_text(TAMING.format(**(sizes() | change)))
    right = {**sizes(), "mult_x": "x".join(map(str, sizes()["mult"]))}
    says, override = says.format(**right), override.format(**right)
    out = tmp_path / "out"
    assert cli.main(["convert", str(moved), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(moved) in error and f"{says} (--set {override} if the file is right)" in error
    assert not out.exists()
    name = override.partition("=")[0]
    assert cli.main(["convert", str(moved), str(out), "--set", f"{name}=3"]) == 2, "a wrong word of the user's is no way round"
    assert f"--set {name}=3, but the file has" in capsys.readouterr().err
    assert cli.main(["convert", str(moved), str(out), "--set", override]) == 0 and out.exists()


def test_read_sidecar_configs_searches_file_folder_and_configs(moved):
    names = lambda: list(read_sidecar_configs(moved))  # noqa: E731
    assert names() == []
    (moved.parent.parent / "configs").mkdir()
    (moved.parent.parent / "configs" / "2020-project.yaml").write_text("model: {params: {n_embed: 3}}")
    assert names() == ["2020-project.yaml"], "where taming's trainer keeps them"
    (moved.parent / "config.json").write_text('{"n_embed": 3}')
    (moved.parent / "other.json").write_text("not looked at")
    (moved.parent / "b.yml").write_text("- 1")
    assert names() == ["b.yml", "config.json", "2020-project.yaml"]
    (moved.parent / "last.yaml").write_text("n_embed: 5")
    assert read_sidecar_configs(moved) == {"last.yaml": {"n_embed": 5}}, "its own, by name, counts alone"
    assert list(read_sidecar_configs(moved.parent)) == ["b.yml", "config.json", "last.yaml"]


BAD = {
    "runs code": (
        "!!python/object/apply:os.system ['touch {marker}']",
        r"line 1: could not determine a constructor for the tag",
    ),
    "builds an object": ("a: !!python/name:os.system", "could not determine a constructor"),
    "cut": ("model:\n  params: {n_embed: 3", "line 2: expected"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: but found another document"),
    "not text": (b"\xff\xfe\x00\xd8\x00\xd8", "is not valid YAML"),
    "control bytes": (b"a: \x00\x01", "is not valid YAML"),
    "deep": ("[" * 5000, "is nested more than 32 deep"),
    "long number": ("n_embed: " + "9" * 5000, "is not valid YAML"),
    "bad date": ("a: 2020-13-45", "is not valid YAML"),
    "a list for a key": ("? [1, 2]\n: 3", "is not valid YAML"),
    "large": ("# " + "x" * 70_000, "has more than 64 KB"),
    "alias tower": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
        "refers to other parts of itself more than 16 times",
    ),
    "merge tower": (
        "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
        "refers to other parts of itself more than 16 times",
    ),
}


@pytest.mark.parametrize("text_,says", BAD.values(), ids=BAD)
def test_bad_yaml_raises_naming_the_file_and_runs_nothing(moved, tmp_path, capsys, text_, says):
    marker = tmp_path / "ran"
    raw = text_ if isinstance(text_, bytes) else text_.replace("{marker}", str(marker)).encode()
    (moved.parent / "model.yaml").write_bytes(raw)
    began = time.process_time()
    assert cli.main(["convert", str(moved), str(tmp_path / "out")]) == 2
    assert time.process_time() - began < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{moved.parent / 'model.yaml'}: " in error and says in error, error
    assert "mend it or move it away" in error and not (tmp_path / "out").exists() and not marker.exists()
    assert says in inspect(moved), "the file is still shown"


@pytest.mark.slow
def test_self_referencing_yaml_terminates(moved, tmp_path):
    (moved.parent / "model.yaml").write_text(f"&a\nmodel: *a\nn_embed: {sizes()['codes']}\n")
    convert(moved, tmp_path / "out")


@pytest.mark.slow
def test_contradicting_config_json_is_refused(moved, tmp_path):
    (moved.parent / "config.json").write_text(json.dumps({"n_embed": 5}))
    with pytest.raises(BadWeightFile, match=r"config\.json says n_embed = 5, the file has"):
        convert(moved, tmp_path / "out")
    (moved.parent / "config.json").write_text('{"n_embed": 5, "n_embed": 6}')
    with pytest.raises(BadWeightFile, match=r"config\.json: it has the key n_embed twice"):
        convert(moved, tmp_path / "out")


# ------------------------------------------------------------------------------------------------ inside the file
@pytest.fixture(scope="module")
def generator():
    config, _ = load_case("llamagen_gpt/c2i_tiny")
    layout = dict(grid=(8, 8), positions="2d", class_position="first", mask_logit=False, causal=True, dropout=0.1)
    cfg = llama_config(config["hparams"], **layout)
    state = {name: draw(name, t.shape, config["recipe"]) for name, t in published_tensors("llamagen-c2i", cfg).items()}
    return cfg, state


def torch_file(path, state: dict, **others: bytes) -> None:
    weights, held = tensors_of(state)
    path.write_bytes(torch_zip(mapping(model=weights, **others), held))


def args(**values) -> bytes:
    return args_of(**{name: value if isinstance(value, bytes) else number(value) for name, value in values.items()})


def test_args_inside_the_file_are_used_and_compared(generator, tmp_path):
    cfg, state = generator
    right = dict(
        n_head=cfg.heads, image_size=128, downsample_size=16, vocab_size=cfg.codebook_size, num_classes=cfg.num_classes
    )
    torch_file(tmp_path / "good.pt", state, args=args(gpt_model=text("GPT-B"), **right))
    assert convert(tmp_path / "good.pt", tmp_path / "out").plan.cfg.grid == (8, 8)
    assert load_weights(tmp_path / "out").cfg.heads == cfg.heads
    torch_file(tmp_path / "bad.pt", state, args=args(**(right | {"vocab_size": 8192})))
    says = f"its options say vocab_size = 8192, its tensors make it {cfg.codebook_size}"
    with pytest.raises(BadWeightFile, match=says):
        convert(tmp_path / "bad.pt", tmp_path / "new")
    convert(tmp_path / "bad.pt", tmp_path / "new", options={"codebook_size": cfg.codebook_size})
    marker = tmp_path / "ran"
    shell = call("posix", "system", text(f"touch {marker}"))
    torch_file(tmp_path / "shell.pt", state, args=args(**(right | {"vocab_size": shell})))
    convert(tmp_path / "shell.pt", tmp_path / "inert")
    assert not marker.exists()


def test_lightning_hyper_parameters_are_compared(file, tmp_path):
    meta, _ = golden("vq", "taming_f16_mid")
    state = draw_all(meta["shapes"], meta["recipe"])
    inner = mapping(ddconfig=mapping(z_channels=number(5)), n_embed=number(sizes()["codes"]))
    torch_file(tmp_path / "last.pt", state, hyper_parameters=inner)
    with pytest.raises(BadWeightFile, match=r"its options say z_channels = 5, its tensors make it"):
        convert(tmp_path / "last.pt", tmp_path / "out")

"""What no tensor states when a file is converted: it is printed, can be set,
and is not compared with configurations."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.gpt_weights import published_tensors
from safetensors.numpy import load_file, save_file

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_generator, load_weights
from maskgil_jax.config import AdaLNConfig, BertConfig, ConfigError, LlamaConfig
from maskgil_jax.convert.families import identify
from maskgil_jax.convert.main import convert, export_file, inspect
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.convert.readers.checkpoint import BadWeightFile, Problem, strip_wrappers
from maskgil_jax.convert.readers.detect import read
from maskgil_jax.models.condition import ClassCondition

SMALL = dict(codebook_size=32, grid=(4, 4), width=64, depth=2, heads=1, mlp_width=128)
LLAMAGEN = dict(SMALL, positions="2d", class_position="first", mask_logit=False, causal=True)
TABLE = "cls_embedding.embedding_table.weight"


def state_of(family: str, cfg) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=t.shape).astype(np.float32) for name, t in published_tensors(family, cfg).items()}


@pytest.fixture(scope="module")
def llamagen():
    return state_of("llamagen-c2i", LlamaConfig(num_classes=9, **LLAMAGEN))


def write(path, state):
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path)
    return path


def shapes_of(state) -> dict:
    return {name: (array.shape, array.dtype) for name, array in state.items()}


# ------------------------------------------------------------------------------------------------ the null class
def test_convert_prints_that_the_last_class_row_is_taken_for_the_null_class(llamagen, tmp_path):
    done = convert(write(tmp_path / "w.safetensors", llamagen), tmp_path / "out", options={"grid": 4})
    assert (done.plan.cfg.num_classes, done.plan.cfg.null_class) == (9, True)
    assert f"assumed: num_classes = 9: the last of the 10 rows of {TABLE} is taken for the null class" in str(done)
    assert "--set num_classes=10" in str(done)
    assert any("num_classes = 9" in note for note in load_weights(tmp_path / "out").metadata["source"]["assumed"])


@pytest.mark.parametrize("stated", ["option", "config.json"])
def test_a_network_without_a_null_row_keeps_its_last_class_and_refuses_guidance(stated, llamagen, tmp_path):
    file = write(tmp_path / "w.safetensors", llamagen)
    if stated == "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"num_classes": 10}))
    done = convert(file, tmp_path / "out", options={"grid": 4} | ({"num_classes": 10} if stated == "option" else {}))
    assert (done.plan.cfg.num_classes, done.plan.cfg.null_class) == (10, False) and "null_class = False" in str(done)
    model = load_generator(tmp_path / "out")
    np.testing.assert_array_equal(model.classes.embedding[...], llamagen[TABLE])
    with pytest.raises(ConfigError, match=r"null_class=False.*guidance=1"):
        model.null_condition(ClassCondition(jnp.zeros(1, jnp.int32)))
    assert load_weights(tmp_path / "out").metadata["decode"] == {"guidance": 1.0}
    back = load_file(export_file(tmp_path / "out", tmp_path / "back.safetensors", "llamagen-c2i"))
    assert all(np.array_equal(back[name], llamagen[name]) for name in llamagen)


def test_a_number_of_classes_that_no_row_count_fits_is_refused(llamagen):
    _, problems = make_plan(shapes_of(llamagen), sidecars={"config.json": {"num_classes": 12}})
    assert problems == ["config.json says num_classes = 12, the file has 9 (--set num_classes=9 if the file is right)"]
    _, problems = make_plan(shapes_of(llamagen), sidecars={"config.json": {"num_classes": 9}})
    assert problems == []


# ------------------------------------------------------------------------------------------------ claims and tensors
def test_a_text_network_beside_a_config_with_num_classes_is_converted(tmp_path):
    cfg = LlamaConfig(condition="text", text_tokens=3, text_dim=8, **LLAMAGEN)
    write(tmp_path / "w.safetensors", state_of("llamagen-t2i", cfg))
    (tmp_path / "config.json").write_text(json.dumps({"num_classes": 10, "vocab_size": 32, "n_layer": 2}))
    assert convert(tmp_path / "w.safetensors", tmp_path / "out", options={"grid": 4}).plan.cfg.condition == "text"
    with pytest.raises(ConfigError, match="--set num_classes: networks of the family llamagen-t2i do not have this option"):
        convert(tmp_path / "w.safetensors", tmp_path / "new", options={"num_classes": 10})
    (tmp_path / "config.json").write_text(json.dumps({"num_classes": 10, "n_layer": 3}))
    with pytest.raises(BadWeightFile, match=r"config\.json says n_layer = 3, the file has 2"):
        convert(tmp_path / "w.safetensors", tmp_path / "new")


@pytest.mark.parametrize(
    "family,cfg,options",
    [
        ("besnier-maskgit", BertConfig(num_classes=5, **(SMALL | {"grid": (2, 8)}), mask_logit=True), {"num_classes": 5}),
        ("halton", AdaLNConfig(num_classes=5, **(SMALL | {"grid": (2, 8)})), {}),
    ],
    ids=["besnier", "halton"],
)
def test_a_square_grid_is_an_assumption_that_set_overrides(family, cfg, options):
    found = shapes_of(state_of(family, cfg))
    plan, problems = make_plan(found, options=options)
    assert (plan.cfg.grid, problems) == ((4, 4), []) and any("grid = 4x4: 16 positions" in note for note in plan.notes)
    assert make_plan(found, options=options | {"grid": [2, 8]})[0].cfg.grid == (2, 8)
    with pytest.raises(Problem, match="has 16 positions, a grid of 3x5 needs 15"):
        make_plan(found, options=options | {"grid": [3, 5]})


def test_the_codebook_of_a_joint_table_follows_from_either_number():
    found = shapes_of(state_of("besnier-maskgit", BertConfig(num_classes=5, **SMALL, mask_logit=True)))
    for options in ({"num_classes": 5}, {"codebook_size": 32}):
        plan, problems = make_plan(found, options=options)
        assert (plan.cfg.codebook_size, plan.cfg.num_classes, problems) == (32, 5, [])
    with pytest.raises(Problem, match=r"its 39 rows cannot hold 1000 classes and a codebook: --set num_classes=N"):
        make_plan(found)


def test_options_that_a_family_fixes_are_printed_and_can_be_set(llamagen, tmp_path, capsys):
    file = str(write(tmp_path / "w.safetensors", llamagen))
    assert "as every llamagen-c2i network" in inspect(file) and "rope_base=10000.0" in inspect(file)
    settings = ["--set", "grid=4", "--set", "rope_base=500000", "--set", "norm_eps=1e-6", "--set", "qk_norm=none"]
    assert cli.main(["convert", file, str(tmp_path / "out"), *settings]) == 0
    cfg = load_weights(tmp_path / "out").cfg
    assert (cfg.rope_base, cfg.norm_eps, cfg.qk_norm) == (500000.0, 1e-6, "none")
    assert cli.main(["convert", file, str(tmp_path / "new"), "--set", "causal=3"]) == 2
    assert "--set causal: expected bool" in capsys.readouterr().err and not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------ prefixes
CHECKPOINTED = "_checkpoint_wrapped_module."
WRAPPED = {
    "fsdp": (lambda n: n.replace(".attention.", "._fsdp_wrapped_module.attention."), "'_fsdp_wrapped_module.'", 4),
    "checkpoint": (lambda n: n.replace(".attention.", f".{CHECKPOINTED}attention."), f"'{CHECKPOINTED}'", 4),
    "compile": (lambda n: "_orig_mod." + n, "'_orig_mod.'", None),
    "ddp": (lambda n: "module." + n, "'module.'", None),
    "lightning": (lambda n: "model." + n, "'model.'", None),
    "lightning of ddp": (lambda n: "model.module." + n, "'model.module.'", None),
    "state dict": (lambda n: "state_dict.model." + n, "'state_dict.model.'", None),
}  # fmt: skip


@pytest.mark.parametrize("wrap,prefix,count", WRAPPED.values(), ids=WRAPPED)
def test_prefixes_of_training_wrappers_are_stripped_and_named(wrap, prefix, count, llamagen, tmp_path):
    plain = convert(write(tmp_path / "plain.safetensors", llamagen), tmp_path / "plain", options={"grid": 4})
    assert "stripped" not in str(plain)
    file = write(tmp_path / "w.safetensors", {wrap(name): array for name, array in llamagen.items()})
    done = convert(file, tmp_path / "out", options={"grid": 4})
    assert f"stripped {prefix} from {count or len(llamagen)} of {len(llamagen)} names" in str(done)
    assert f"stripped {prefix} from" in inspect(file)
    assert load_weights(tmp_path / "out").metadata["source"]["stripped_from_names"] == [prefix.strip("'")]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "out")]
    assert weights[0] == weights[1]


def test_a_prefix_of_some_names_is_named_and_taken_with_family(llamagen, tmp_path):
    state = {"model." + name: array for name, array in llamagen.items()} | {"metric.total": np.zeros(2, np.float32)}
    file = write(tmp_path / "w.safetensors", state)
    with pytest.raises(BadWeightFile, match=r"of its \d+ names begin with 'model\.' and are those of llamagen-c2i: --family"):
        convert(file, tmp_path / "out")
    done = convert(file, tmp_path / "out", family="llamagen-c2i", options={"grid": 4})
    assert "left out: 1 tensors, not under model." in str(done)


def test_identify_prefers_names_without_a_prefix(llamagen):
    assert identify(llamagen)[::2] == ("llamagen-c2i", "")
    assert identify(["net." + name for name in llamagen])[::2] == ("llamagen-c2i", "net.")


def test_wrappers_are_stripped_as_whole_parts_of_a_name(tmp_path):
    assert strip_wrappers("module.a._fsdp_wrapped_module._checkpoint_wrapped_module.b") == (
        "a.b",
        ["_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module."],
    )
    for name in ("my_orig_mod.a", "encoder.module.a", "modules.a"):
        assert strip_wrappers(name) == (name, [])
    state = {"module.a": np.ones(1, np.float32), "_orig_mod.b": np.ones(1, np.float32)}
    assert read(write(tmp_path / "w.safetensors", state)).wrappers == {"module.": 1, "_orig_mod.": 1}

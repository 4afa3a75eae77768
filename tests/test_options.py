"""Options declared with help, choices and ranges: their check, their old names, and the run files made from them."""

import dataclasses

import pytest

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import resolve
from maskgil_jax.commands.run_files import find_run_file, option_paths, read_run_file, shipped_run_files
from maskgil_jax.config import CausalConfig, ConfigError, DecodeConfig, LlamaConfig, VQConfig, from_dict, to_dict
from maskgil_jax.config.base import check_ranges, info_of, option, warn_renamed
from maskgil_jax.config.training import SECTIONS, Objective, OptimizerConfig, check_run_file


@dataclasses.dataclass(frozen=True)
class Sample:
    count: int = option(1, low=1)
    rate: float | None = option(None, low=0.0, high=1.0, open_low=True)
    devices: int = option(-1, low=1, off=-1)
    kind: str = option("a", choices=("a", "b"))
    flag: bool = option(False)

    def __post_init__(self):
        check_ranges(self)


def test_values_inside_their_range_are_accepted():
    Sample(count=1, rate=1.0, devices=-1, kind="b", flag=True)
    Sample(rate=None, devices=3)
    Sample(rate=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count: must be a whole number >= 1, got 0"),
        ({"count": 1.0}, "count: must be a whole number >= 1, got 1.0"),
        ({"count": True}, "count: must be a whole number >= 1, got True"),
        ({"count": None}, "count: must be a whole number >= 1, got None"),
        ({"rate": 0.0}, "rate: must be None or a finite number in (0, 1], got 0.0"),
        ({"rate": float("nan")}, "rate: must be None or a finite number in (0, 1], got nan"),
        ({"devices": 0}, "devices: must be a whole number >= 1, or -1, got 0"),
        ({"kind": "c"}, "kind: unknown value 'c'; choose from a, b."),
        ({"flag": 1}, "flag: must be True or False, got 1"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values, message):
    with pytest.raises(ConfigError) as error:
        Sample(**values)
    assert str(error.value) == message
    with pytest.raises(ConfigError) as error:
        from_dict(Sample, values, "config.sample")
    assert str(error.value) == f"config.sample.{message}"


def test_every_option_has_a_help_text():
    kinds = {DecodeConfig, CausalConfig, *(kind for top, parts in SECTIONS.values() for kind in (top, *parts.values()))}
    assert not [f"{kind.__name__}.{f.name}" for kind in kinds for f in dataclasses.fields(kind) if not info_of(f).help]


def test_old_option_names_are_read_with_one_warning(caplog):
    warn_renamed.cache_clear()
    for _ in range(2):
        assert from_dict(Objective, {"law": "bernoulli"}, "config.objective").masking == "bernoulli"
        assert from_dict(DecodeConfig, {"images": "one_by_one"}, "config.decode").batch_mode == "map"
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "config.objective.law: is now called masking",
        "config.decode.images: is now called batch_mode",
    ]
    assert DecodeConfig(images="together") == DecodeConfig(batch_mode="vmap")
    assert "images" not in to_dict(DecodeConfig())
    with pytest.raises(ConfigError, match="old name of masking"):
        from_dict(Objective, {"law": "exact", "masking": "exact"})


def test_old_run_file_keys_are_read(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from maskgil_jax.configs import debug\n\ndef get_config():\n    config = debug.get_config()\n"
        "    del config.objective['masking']\n    config.objective.law = 'bernoulli'\n    return config\n"
    )
    assert read_run_file(str(file), []).objective.masking == "bernoulli"
    config = read_run_file(str(file), ["--config.objective.law=exact", "--config.decode.images=one_by_one"])
    assert (config.objective.masking, config.decode.batch_mode) == ("exact", "map")


def test_run_files_are_found_by_name_and_by_the_path_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("debug", "debug.py", "configs/debug.py", "configs/debug"):
        assert find_run_file(name).name == "debug.py"
    for name in ("other/debug.py", "configs/debgu.py"):
        with pytest.raises(ConfigError, match=f"no run file {name}.*maskgil configs"):
            find_run_file(name)
    (tmp_path / "debug.py").write_text("")
    assert find_run_file("debug.py").resolve() == tmp_path / "debug.py"


@pytest.mark.parametrize(("name", "kind"), [("c2i_b", LlamaConfig), ("demo_tokenizer", VQConfig)])
def test_every_field_of_a_network_can_be_set(name, kind):
    fixed = {"codebook_size", "num_classes", "grid"} if kind is LlamaConfig else {"image_size"}
    paths = set(option_paths(read_run_file(name, [])))
    assert {f"model.{field.name}" for field in dataclasses.fields(kind)} - paths <= {f"model.{name}" for name in fixed}
    assert {f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig)} <= paths


@pytest.mark.parametrize("name", [name for name in shipped_run_files() if not name.startswith("eval_")])
def test_shipped_run_files_pass_their_own_check(name):
    check_run_file(read_run_file(name, []).to_dict())


def test_an_unknown_key_of_a_run_file_is_refused_with_the_nearest():
    options = read_run_file("debug", []).to_dict() | {"totl_steps": 3}
    with pytest.raises(ConfigError, match="no option 'totl_steps'; did you mean 'total_steps'"):
        check_run_file(options)


def test_configs_lists_run_files_and_their_options(capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line} >= set(shipped_run_files())
    assert cli.main(["configs", "debug", "--config.total_steps=7"]) == 0
    said = capsys.readouterr().out
    assert "--config.total_steps=7\n    steps of the whole training (>= 1)\n" in said


def test_help_all_shows_rare_options_that_help_leaves_out(capsys):
    for option_name, shown in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sample", option_name])
        said = capsys.readouterr().out
        assert stop.value.code == 0 and "--steps N" in said and ("--remask-eta X" in said) == shown


def test_labels_list_reads_no_weights(monkeypatch, capsys):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("maskgil_jax.checkpoints.weights.load_weights", refuse)
    assert cli.main(["sample", "--labels", "list"]) == 0
    assert "  44  hearts" in capsys.readouterr().out


def test_a_missing_weights_folder_names_the_likely_address(tmp_path):
    with pytest.raises(ConfigError, match="hf://me/x"):
        resolve("me/x")
    (tmp_path / "gen" / "weights" / "generator").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"give .*gen/weights"):
        resolve(tmp_path / "gen", "generator")

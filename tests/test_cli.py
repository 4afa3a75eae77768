"""The command line: a whole small run, continued after an interruption, and an error of one line for every mistake."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.commands.sample import split_labels
from maskgil_jax.config import VQConfig
from maskgil_jax.networks import create, params_of

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
VQ = VQConfig(channels=8, multipliers=(1, 1, 2, 2), res_blocks=1, latent_dim=8, codebook_size=32, codebook_dim=4, image_size=64)
TINY = ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.sample_count=8"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "weights"
    save_weights(folder, VQ, params_of(create(VQ, jax.random.key(0))))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def train(workdir, tokenizer, *more):
    return cli.main(
        [
            "train",
            "--config",
            str(CONFIGS / "debug.py"),
            "--workdir",
            str(workdir),
            f"--config.tokenizer={tokenizer}",
            *TINY,
            *more,
        ]
    )


def losses(workdir):
    return {line["step"]: line["masked_loss"] for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())}


@pytest.mark.slow
def test_encode_train_interrupt_continue_sample(tmp_path, tokenizer, images, capsys):
    store = tmp_path / "codes"
    assert cli.main(["encode", "--tokenizer", str(tokenizer), "--data.path", str(images), "--out", str(store), "--flip"]) == 0
    run = [f"--config.data.codes={store}", "--config.log_every=2", "--config.checkpoint.every=4"]
    assert train(tmp_path / "whole", tokenizer, *run, "--config.total_steps=8") == 0
    # A run that was stopped after step 4, at its first checkpoint, continues with the same codes and masks.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=lambda *_: {"weights", "images", "8"})
    assert train(tmp_path / "parts", tokenizer, *run, "--config.total_steps=8") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and losses(tmp_path / "parts").keys() == {2, 4, 6, 8}
    weights = tmp_path / "whole" / "weights"
    assert {p.name for p in weights.iterdir()} == {"tokenizer", "generator"}
    assert load_weights(weights, "generator").about["class_names"] == ["cats", "dogs"]
    assert any((tmp_path / "whole" / "tensorboard").iterdir()) and (tmp_path / "whole" / "parameters.txt").read_text()
    assert Image.open(tmp_path / "whole" / "images" / "samples_0000008.png").size[0] > 64

    capsys.readouterr()
    assert cli.main(["sample", "--weights", str(weights), "--labels", "list"]) == 0
    assert capsys.readouterr().out.split() == ["0", "cats", "1", "dogs"]
    out = tmp_path / "out"
    assert (
        cli.main(
            ["sample", "--weights", str(weights), "--labels", "dogs,0", "--per-class", "3", "--out", str(out), "--steps", "3"]
        )
        == 0
    )
    assert sorted(p.name for p in out.iterdir()) == [f"{i:06d}.png" for i in range(6)] + ["grid.png", "samples.json"]

    mistakes = {
        "label": (["sample", "--weights", str(weights), "--labels", "2"], "labels: 2 is out of range; classes are 0..1"),
        "seed": (["sample", "--weights", str(weights), "--seed", "-1"], "seed: must be in"),
    }
    for argv, message in mistakes.values():
        assert cli.main([*argv, "--out", str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert train(tmp_path / "whole", tokenizer, *run, "--config.seed=1") == 4
    assert "made with seed = 0, this run has 1" in capsys.readouterr().err
    other = tmp_path / "other"
    save_weights(other, VQ, params_of(create(VQ, jax.random.key(9))))
    assert train(tmp_path / "new", other, *run) == 2
    assert load_weights(other).hash in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_interrupted_training_gives_the_losses_of_an_uninterrupted_one(tmp_path, tokenizer, images, monkeypatch, capsys):
    """Stopped by an exception after the second checkpoint, the same command gives the losses of an uninterrupted
    run."""
    run = [f"--config.data.path={images}", "--config.total_steps=6", "--config.log_every=1", "--config.checkpoint.every=2"]
    run += ["--config.sample_every=0"]
    assert train(tmp_path / "whole", tokenizer, *run) == 0
    from maskgil_jax.training import metrics_log as log

    step = log.StepLog.step

    def stop_at_five(self, number, metrics):
        step(self, number, metrics)
        if number == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(log.StepLog, "step", stop_at_five)
    assert train(tmp_path / "parts", tokenizer, *run) == 130
    assert "the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(log.StepLog, "step", step)
    assert train(tmp_path / "parts", tokenizer, *run) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    leaves = [jax.tree.leaves(load_weights(tmp_path / n / "weights", "generator").params) for n in ("whole", "parts")]
    assert all((a == b).all() for a, b in zip(*leaves, strict=True))


MISTAKES = {
    "no run file": (["--config", "configs/none.py"], "--config: no run file configs/none.py"),
    "typo": (
        ["--config", "debug", "--config.optimizer.lerning_rate=1"],
        "--config.optimizer.lerning_rate: there is no such option; did you mean --config.optimizer.learning_rate?",
    ),
    "section": (
        ["--config", "debug", "--config.learning_rate=1"],
        "--config.learning_rate: there is no such option; did you mean --config.optimizer.learning_rate?",
    ),
    "type": (["--config", "debug", "--config.batch_size=many"], "--config.batch_size: expected int, got 'many'"),
    "no value": (["--config", "debug", "--config.batch_size"], "--config.batch_size: needs a value"),
    "range": (
        ["--config", "debug", "--config.optimizer.learning_rate=-1"],
        "config.optimizer.learning_rate: must be a finite number > 0, got -1.0",
    ),
    "ema": (
        ["--config", "debug", "--config.optimizer.ema_decay=2"],
        "config.optimizer.ema_decay: must be a finite number in [0, 1)",
    ),
    "smoothing": (["--config", "debug", "--config.objective.label_smoothing=1.5"], "config.objective.label_smoothing: must be"),
    "total": (["--config", "debug", "--config.total_steps=-5"], "config.total_steps: must be a whole number >= 1, got -5"),
    "size": (
        ["--config", "debug", "--config.data.image_size=0"],
        "config.data.image_size: must be a whole number >= 1, or (height, width), got 0",
    ),
    "preset": (["--config", "debug", "--config.model.preset=BB"], "config.model.preset: unknown value 'BB'"),
    "tokenizer": (["--config", "debug", "--config.tokenizer=nowhere"], "nowhere: no such weights folder"),
    "grid": (
        ["--config", "debug", "--config.data.image_size=60"],
        "60 is not a multiple of the tokenizer's downsampling factor 8",
    ),
    "schedule": (["--config", "debug", "--config.decode.schedule=sine"], "schedule: unknown value 'sine'"),
    "images": (["--config", "debug", "--config.data.path=/nowhere"], "/nowhere"),
    "batch": (["--config", "debug", "--config.batch_size=12"], "config.batch_size: 12 is not a multiple of 8"),
    "mesh": (["--config", "debug", "--config.mesh.fsdp=3"], "does not make 8 devices"),
    "masking": (["--config", "debug", "--config.objective.masking=exakt"], "masking: unknown value 'exakt'"),
}


@pytest.mark.parametrize("argv,message", MISTAKES.values(), ids=MISTAKES)
def test_train_mistakes_give_one_line_and_no_workdir(argv, message, tokenizer, tmp_path, capsys):
    base = [] if any("config.tokenizer" in a for a in argv) else [f"--config.tokenizer={tokenizer}"]
    work = tmp_path / "run"
    assert cli.main(["train", "--workdir", str(work), *argv, *base]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert not work.exists()


USAGE_MISTAKES = {
    "command": (["smaple"], "usage: maskgil COMMAND", "unknown command 'smaple'; did you mean 'sample'?"),
    "no command": ([], "usage: maskgil COMMAND", "COMMAND: missing"),
    "option": (["sample", "--label", "x"], "usage: maskgil sample [options]", "unknown option --label; did you mean --labels?"),
    "required": (["encode"], "usage: maskgil encode --out", "required: --out, --data.path"),
    "dotted": (
        ["encode", "--data.paht=x", "--out=x"],
        "usage: maskgil encode",
        "unknown option --data.paht; did you mean --data.path?",
    ),
    "config": (
        ["train", "--config", "debug", "--workdir", "x", "--confg.batch_size=4"],
        "usage: maskgil train --config FILE --workdir",
        "unknown option --confg.batch_size; did you mean --config.batch_size?",
    ),
    "extra word": (["sample", "cats"], "usage: maskgil sample", "unexpected argument 'cats'"),
    "choice": (["sample", "--schedule", "arcos"], "usage: maskgil sample", "--schedule: unknown value 'arcos'"),
    "format": (["sample", "--format", "jpg"], "usage: maskgil sample", "--format: unknown value 'jpg'; did you mean 'png'?"),
    "range": (["sample", "--steps", "0"], "usage: maskgil sample", "--steps: must be a whole number >= 1, got 0"),
    "number": (["sample", "--top-p", "many"], "usage: maskgil sample", "--top-p: must be a number, got 'many'"),
    "preset": (
        ["sample", "--preset", "papr"],
        "usage: maskgil sample",
        "--preset: unknown value 'papr'; did you mean 'paper'?",
    ),
    "empty": (["sample", "--out", ""], "usage: maskgil sample", "--out: is empty"),
}


@pytest.mark.parametrize(("argv", "usage", "message"), USAGE_MISTAKES.values(), ids=USAGE_MISTAKES)
def test_wrong_usage_prints_usage_and_nearest_name(argv, usage, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(usage) and lines[1].startswith("error: ") and message in lines[1], lines


def test_split_labels_keeps_class_names_with_commas():
    names = ("light, film & video", "hearts", "roles & careers")
    assert split_labels("hearts,light, film & video, roles & careers", names) == ["hearts", names[0], "roles & careers"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda f: f.stem)
def test_every_run_file_loads_and_names_its_command(file):
    config = read_run_file(str(file), [])
    if config.task == "evaluation":
        assert file.stem.startswith("eval_") and config.rows
    else:
        assert config.task in ("generator", "tokenizer", "classifier") and config.total_steps > 0
    command = "evaluate" if config.task == "evaluation" else "train"
    assert f"maskgil {command} --config configs/{file.name}" in file.read_text().split('"""')[1]

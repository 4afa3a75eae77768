"""A run and its data: checkpoints know what they were made on, and a workdir has one owner."""

import contextlib
import json
import os

import jax
import numpy as np
import pytest
from helpers import toy_run
from helpers.damage import abstract_state, made_up_state
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.checkpoints.train_state import CheckpointError, Checkpoints
from maskgil_jax.config import ConfigError, LoaderConfig, height_width
from maskgil_jax.data.sources.folder import ImageFolder
from maskgil_jax.files.lock import folder_lock
from maskgil_jax.training.loop import data_identity, loader_config

CONFIG = os.path.join(os.path.dirname(__file__), "..", "configs", "debug.py")


@pytest.mark.parametrize(
    ("then", "now", "difference"),
    [
        ({"path": "a", "content": "images:1"}, {"path": "/b/a", "content": "images:1"}, None),
        ({"path": "a", "content": "images:1"}, {"path": "a", "content": "images:2"}, "data.content = 'images:1'"),
        ({"path": "a", "content": "images:1"}, {"path": "a", "content": "codes:2"}, None),
        ({"path": "a"}, {"path": "a", "content": "images:1"}, None),  # made by an older version
        ({"path": "a"}, {"path": "b", "content": "images:1"}, "data.path = 'a'"),
        ({"path": "emoji", "flip": True}, {"path": "emoji", "flip": False}, "data.flip = True"),
    ],
)
def test_checkpoint_of_other_data_raises_naming_the_difference(tmp_path, caplog, then, now, difference):
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        checkpoints.save(3, made_up_state(3), {"data": then}, wait=True)
        if difference is None:
            assert checkpoints.restore(abstract_state(), {"data": now})[0] == 3
            return
        with pytest.raises(CheckpointError) as raised:
            checkpoints.restore(abstract_state(), {"data": now})
        assert difference in str(raised.value) and "another --workdir" in str(raised.value)
        assert ("allow_data_change=True" in str(raised.value)) == ("content" in difference)
        assert checkpoints.restore(abstract_state(), {"data": now}, allow=("data",))[0] == 3


def test_data_identity_has_the_content_of_its_source(folder):
    config = toy_run.run_file(data=dict(path=str(folder), codes="x", data_dir="y", num_workers=2, crop="center"))
    source = ImageFolder(folder)
    assert data_identity(config, source) == {"path": str(folder), "crop": "center", "content": source.content_hash}
    assert data_identity(config) == {"path": str(folder), "crop": "center"}
    config.data.update(shuffle=True, num_epochs=None)  # defaults are not part of the identity, other values are
    assert data_identity(config) == {"path": str(folder), "crop": "center"}
    config.data.shuffle = False
    assert data_identity(config) == {"path": str(folder), "crop": "center", "shuffle": False}


def test_loader_config_takes_loader_options_of_the_data_section():
    config = toy_run.run_file(data=dict(path="emoji", num_workers=2, shuffle=False, num_epochs=None, crop="center"), seed=5)
    assert loader_config(config) == LoaderConfig(toy_run.BATCH, seed=5, num_workers=2, shuffle=False)


@pytest.mark.parametrize(("size", "expected"), [(64, (64, 64)), ((48, 64), (48, 64)), ([48, 64], (48, 64))])
def test_height_width_takes_one_number_as_a_square(size, expected):
    assert height_width(size) == expected


@pytest.mark.parametrize("size", [0, -1, 64.0, True, (64,), (64, 0), "64", None])
def test_height_width_refuses_other_values(size):
    with pytest.raises(ConfigError, match=r"config\.data\.image_size: must be a whole number >= 1, or "):
        height_width(size, "config.data.image_size")


@pytest.mark.slow
def test_second_run_in_a_workdir_is_refused_naming_the_first(tmp_path):
    with folder_lock(tmp_path), pytest.raises(ConfigError, match=rf"in use by process {os.getpid()} on .* --workdir"):
        toy_run.toy_run(tmp_path, toy_run.run_file(total_steps=1))
    assert list(tmp_path.iterdir()) == []
    toy_run.toy_run(tmp_path, toy_run.run_file(total_steps=1, checkpoint=dict(every=1, keep=1)))
    assert not (tmp_path / ".lock").exists() and (tmp_path / "checkpoints" / "1").is_dir()


@pytest.mark.slow
def test_fit_passes_the_batch_of_the_stream_to_the_step(tmp_path):
    """Batches hold exactly what the step takes: fit neither adds nor removes fields."""
    keys = []

    def stream(start_step):
        for batch in toy_run.batches(start_step):
            keys.append(sorted(batch))
            yield batch

    state = toy_run.toy_run(tmp_path, toy_run.run_file(total_steps=2, checkpoint=dict(every=2, keep=1)), stream)
    assert keys == [["codes", "label"]] * 2 and int(jax.device_get(state.step)) == 2


def test_checkpoints_command_verifies_a_relative_path(tmp_path, monkeypatch, capsys):
    with contextlib.closing(Checkpoints(tmp_path / "run", keep=1)) as checkpoints:
        checkpoints.save(3, made_up_state(3), {"seed": 0}, wait=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["checkpoints", "run", "--verify"]) == 0
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.slow
def test_training_notices_changed_images(tmp_path):
    """The command refuses to continue on replaced pictures, and continues on them if allowed."""
    for i in range(8):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64, 3), 20 * i, np.uint8)).save(path)
    argv = ["train", "--config", CONFIG, "--workdir", str(tmp_path / "run"), f"--config.data.path={tmp_path / 'photos'}"]
    argv += ["--config.batch_size=8", "--config.sample_every=0", "--config.checkpoint.every=1"]
    assert cli.main([*argv, "--config.total_steps=1"]) == 0
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(tmp_path / "photos" / "a" / "0.png")
    assert cli.main([*argv, "--config.total_steps=2"]) == 4
    assert cli.main([*argv, "--config.total_steps=2", "--config.checkpoint.allow_data_change=True"]) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))

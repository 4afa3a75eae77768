"""The demo from end to end with a handful of steps, run twice; and the shipped weights as a newcomer meets them."""

import pytest
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.commands import demo_run as demo
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.pipelines.pipeline import load

SHORT = ["--config.total_steps=2", "--config.log_every=1", "--config.sample_every=0", "--config.batch_size=16"]
SHORT += ["--config.data.split=test"]  # 543 images instead of 4,617
SMALL = {
    "demo_tokenizer": ["--config.model.channels=4", "--config.model.latent_dim=8", "--config.model.codebook_size=32"],
    "demo": ["--config.model.width=32", "--config.model.depth=1"],
}
PICTURES = {"samples.png", "reconstructions.png"}


def few_steps(name, overrides):
    return read_run_file(name, [*overrides, *SHORT, *SMALL[name]])


@pytest.mark.slow
def test_a_short_demo_and_its_second_run(tmp_path, capsys):
    for _ in range(2):
        demo.run(tmp_path, report=False, weights=None, read_run_file=few_steps)
        said = capsys.readouterr().out
        assert all(str(tmp_path / name) in said for name in (*PICTURES, "curves.png", "generator/weights"))
    assert Image.open(tmp_path / "curves.png").size[0] > 600
    pipeline = load(tmp_path / "generator" / "weights")
    assert pipeline.generator.cfg.codebook_size == 32 and len(pipeline.class_names) == 98
    assert len((tmp_path / "generator" / "metrics.jsonl").read_text().splitlines()) == 2, "the second run trained nothing"


def test_shipped_weights_draw_without_training(tmp_path, capsys):
    assert cli.main(["demo", "--weights", "demo", "--no-report", "--workdir", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == PICTURES
    assert "hearts, country flags, smiling" in capsys.readouterr().out
    colours = Image.open(tmp_path / "samples.png").convert("RGB").getcolors(1 << 20)
    assert len(colours) > 1000

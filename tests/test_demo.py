"""`maskgil demo`: the page of the shipped weights, and the training with a handful of steps, run twice."""

import shlex

import numpy as np
import pytest
from PIL import Image

from maskgil_jax import cli
from maskgil_jax.commands import demo_run as demo
from maskgil_jax.commands.demo_page import Section, write_page
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.data.images import open_images
from maskgil_jax.files.images import save_png
from maskgil_jax.pipelines.pipeline import load

SHORT = ["--config.total_steps=2", "--config.log_every=1", "--config.sample_every=0", "--config.batch_size=16"]
SHORT += ["--config.data.split=test"]  # 543 images instead of 4,617
SMALL = {
    "demo_tokenizer": ["--config.model.channels=4", "--config.model.latent_dim=8", "--config.model.codebook_size=32"],
    "demo": ["--config.model.width=32", "--config.model.depth=1"],
}
PICTURES = {"samples.png", "inpainting.png", "trajectory.png", "reconstructions.png"}


def few_steps(name, overrides):
    return read_run_file(name, [*overrides, *SHORT, *SMALL[name]])


@pytest.mark.slow
def test_demo_training_runs_to_a_page_and_is_reused(tmp_path, capsys):
    for _ in range(2):
        weights = demo.train(tmp_path, few_steps)
        demo.draw(tmp_path, weights, report=False)
        assert str(tmp_path / "index.html") in capsys.readouterr().out
    assert Image.open(tmp_path / "curves.png").size[0] > 600
    pipeline = load(tmp_path / "generator" / "weights")
    assert pipeline.generator.cfg.codebook_size == 32 and len(pipeline.class_names) == 98
    assert len((tmp_path / "generator" / "metrics.jsonl").read_text().splitlines()) == 2, "the second run trained nothing"


@pytest.mark.slow
def test_demo_draws_with_shipped_weights_on_one_page(tmp_path, capsys):
    assert cli.main(["demo", "--no-report", "--workdir", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} >= {*PICTURES, "index.html"}
    page = (tmp_path / "index.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == len(PICTURES) + len(demo.PROMPTS) and "http" not in page
    assert "hearts,country flags,smiling" in page and "maskgil edit inpaint" in page
    colours = Image.open(tmp_path / "samples.png").convert("RGB").getcolors(1 << 20)
    assert len(colours) > 1000


@pytest.mark.slow
def test_inpaint_command_of_the_page_draws_its_picture(tmp_path):
    pipeline, source = load("demo"), open_images("emoji", split="test", label="subgroup", size=64)
    command = demo.inpaint_command(pipeline, source, tmp_path, "demo")
    assert cli.main([*shlex.split(command)[1:], "--out", str(tmp_path / "edited")]) == 0
    images, mask, labels = demo.holes(source)
    expected = pipeline.inpaint(images[:1], mask, labels[:1])[0]
    assert (np.asarray(Image.open(tmp_path / "edited" / "inpaint-000.png")) == expected).all()


def test_page_escapes_text_and_lists_figures(tmp_path):
    save_png(tmp_path / "a.png", np.zeros((2, 3, 3), np.uint8))
    section = Section("<a>", tmp_path / "a.png", 'b "c"', "d > e", scale=4)
    write_page(tmp_path / "page.html", "t&t", "", [section], [("Figure", "Value"), ("<x>", "1")])
    page = (tmp_path / "page.html").read_text()
    assert all(text in page for text in ("&lt;a&gt;", "d &gt; e", "t&amp;t", "<td>&lt;x&gt;</td>", 'width="12" height="8"'))


def test_demo_refuses_training_with_given_weights(capsys):
    assert cli.main(["demo", "--train", "--weights", "demo"]) == 2
    assert "--train, --weights: give one of them" in capsys.readouterr().err

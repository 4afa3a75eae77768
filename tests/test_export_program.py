"""`maskgil export --stablehlo`: the artefact, run by the snippet of docs/sampling.md in a process without the
package."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.tiny_pipeline import NAMES, assert_same_pictures, save_pipeline, tiny_pipeline

import maskgil_jax
from maskgil_jax import cli
from maskgil_jax.config import ConfigError
from maskgil_jax.pipelines.exporting import export_program

RUNNER = re.search(
    r"```python\n(import json\n.*?)```", (pathlib.Path(__file__).parents[1] / "docs" / "sampling.md").read_text(), re.DOTALL
)


def run_artefact(folder) -> np.ndarray:
    """The images that the documented runner draws, in a process that cannot import the package."""
    code = RUNNER.group(1).replace('"served"', repr(str(folder))).replace("[0, 1, 2, 3]", "[0, 1, 2, 1]")
    code = f"import sys\nsys.modules['maskgil_jax'] = None\n{code}\nnp.save({str(folder)!r} + '/images.npy', images)\n"
    code += "assert not any(name.startswith('maskgil_jax.') for name in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "images.npy")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exported_program_draws_the_images_of_the_pipeline(tmp_path, dtype):
    with jax.default_matmul_precision("default"):
        pipeline = maskgil_jax.load(save_pipeline(tmp_path / "weights"), compile_cache=False, dtype=dtype)
        export_program(pipeline, tmp_path / "served", batch_size=4, steps=3)
        expected = pipeline([0, 1, 2, 1], seeds=[1, 2, 3, 4], steps=3)
    assert_same_pictures(run_artefact(tmp_path / "served"), expected)


@pytest.mark.slow
def test_command_exports_for_several_platforms_with_a_manifest(tmp_path, capsys):
    weights, out = save_pipeline(tmp_path / "weights"), tmp_path / "served"
    words = ["export", str(weights), "--stablehlo", str(out), "--platforms", "cpu,tpu,cuda", "--steps", "3", "--grid", "2x4"]
    assert cli.main(words) == 0
    assert "label_b int32 (4,), seeds uint32 (4,) -> images uint8 (4, 8, 16, 3); for cpu, tpu, cuda" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "tpu", "cuda"] and manifest["class_names"] == list(NAMES)
    assert manifest["decode"]["steps"] == 3 and manifest["grid"] == [2, 4]
    expected = tiny_pipeline()([0, 1, 2, 1], seeds=[1, 2, 3, 4], steps=3, grid=(2, 4))
    assert_same_pictures(run_artefact(out), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platforms": ("gpu",)}, "platforms: unknown value 'gpu'"),
        ({"platforms": ("cpu", "cpu")}, "platforms: give each once"),
        ({"batch_size": 0}, "batch_size: must be in 1..64"),
        ({"stepz": 2}, "did you mean 'steps'"),
    ],
)
def test_export_refuses_what_it_cannot_do(tmp_path, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        export_program(tiny_pipeline(), tmp_path / "served", **options)
    assert not (tmp_path / "served").exists()


def test_export_refuses_a_folder_that_holds_something_else(tmp_path):
    (tmp_path / "photo.png").write_text("x")
    with pytest.raises(ConfigError, match="would be lost"):
        export_program(tiny_pipeline(), tmp_path)

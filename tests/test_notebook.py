"""The notebook is stored without outputs, and its code runs from top to bottom with the shipped weights."""

import importlib.metadata
import json
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest

from maskgil_jax.checkpoints.weights import SHIPPED

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "colab_sampling.ipynb"
JAX_FLOOR = re.search(r'"jax>=([\d.]+)"', (NOTEBOOK.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[1]
PIP = '%pip install -q -c own_jax.txt "./maskgil_jax[{extras}]"'
SKIPPED = {"install"} | (set() if (SHIPPED / "demo_ar").is_dir() else {"hybrid"})


def cells():
    """The code cells, as (source, tags)."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "clear the notebook's outputs before saving it"
            yield "".join(cell["source"]), set(cell["metadata"].get("tags", ()))


def test_install_cell_keeps_an_installed_package(capsys):
    """Without IPython's line the cell is Python: here the package is installed, so nothing else is done."""
    source = next(source for source, tags in cells() if tags == {"install"})
    assert source.count("%pip") == 1
    exec(source.replace(PIP, "raise AssertionError"), {})
    assert capsys.readouterr().out.startswith("maskgil_jax ")


def test_install_cell_asks_for_the_address_in_an_empty_session(tmp_path, monkeypatch):
    source = next(source for source, tags in cells() if tags == {"install"})
    monkeypatch.chdir(tmp_path)
    missing = source.replace('version("maskgil-jax")', 'version("maskgil-jax-missing")')
    with pytest.raises(SystemExit, match="REPOSITORY"):
        exec(missing.replace(PIP, "pass"), {})


@pytest.mark.parametrize("jax, kept", [("0.9.1", False), ("0.10.2", True), ("0.11.0.dev20260101", True)])
def test_install_cell_keeps_the_jax_of_the_session_if_new_enough(jax, kept, tmp_path, monkeypatch):
    """pip is told to keep JAX and its plugins at their versions, unless the package needs a newer one."""
    source = next(source for source, tags in cells() if tags == {"install"})
    assert f"({', '.join(JAX_FLOOR.split('.'))})" in source, "the version in the cell is the floor in pyproject.toml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maskgil_jax").mkdir()
    (tmp_path / "maskgil_jax" / "pyproject.toml").touch()
    found = [SimpleNamespace(name=name, version=jax) for name in ("jax", "jaxlib", "jax-cuda12-plugin")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: [*found, SimpleNamespace(name="numpy", version="2.4")])
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    names: dict = {}
    exec(source.replace('version("maskgil-jax")', 'version("maskgil-jax-missing")').replace(PIP, "pass"), names)
    pins = [f"jax=={jax}", f"jaxlib=={jax}", f"jax-cuda12-plugin=={jax}"]
    assert (tmp_path / "own_jax.txt").read_text().splitlines() == (pins if kept else [])
    assert names["extras"] == ("text" if kept else "text,gpu")


def test_only_the_install_cell_needs_ipython():
    for source, tags in cells():
        assert ("%pip" in source) == (tags == {"install"})
        if tags != {"install"}:
            compile(source, str(NOTEBOOK), "exec")


@pytest.mark.slow
def test_notebook_runs_with_shipped_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for source, tags in cells():
        if not tags & SKIPPED:
            exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert names["images"].shape == names["fast"].shape == names["real"].shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(names["steps"][-1], names["images"])
    np.testing.assert_array_equal(names["filled"][:, :, :28], names["real"][:, :, :28])
    assert (names["boxed"][:, 20:44, 20:44] != names["real"][:, 20:44, 20:44]).any()
    assert names["varied"].shape == (4, 64, 64, 3) and names["wide"].shape == (4, 64, 128, 3)
    np.testing.assert_array_equal(names["wide"][:, 8:56, 40:88], names["real"][:, 8:56, 8:56])
    assert names["drawn"].shape == (4, 64, 64, 3) and names["scenes"].shape == (2, 64, 128, 3)
    assert (tmp_path / "trajectory.gif").exists()
    if "hybrid" not in SKIPPED:
        assert names["hybrid"].shape == (4, 64, 64, 3)

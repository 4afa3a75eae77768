"""The notebook is stored without outputs, and its code runs from top to bottom with the shipped weights."""

import json
import pathlib

import numpy as np
import pytest

from maskgil_jax.checkpoints.weights import SHIPPED

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "colab_sampling.ipynb"
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
    exec(source.replace("%pip install -q {source}", "raise AssertionError"), {})
    assert capsys.readouterr().out.startswith("maskgil_jax ")


def test_install_cell_asks_for_the_address_in_an_empty_session(tmp_path, monkeypatch):
    source = next(source for source, tags in cells() if tags == {"install"})
    monkeypatch.chdir(tmp_path)
    missing = source.replace('version("maskgil-jax")', 'version("maskgil-jax-missing")')
    with pytest.raises(SystemExit, match="REPOSITORY"):
        exec(missing.replace("%pip install -q {source}", "print(source)"), {})


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
    assert (tmp_path / "trajectory.gif").exists()
    if "hybrid" not in SKIPPED:
        assert names["hybrid"].shape == (4, 64, 64, 3)

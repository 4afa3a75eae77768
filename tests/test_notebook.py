"""The notebook is kept without outputs, and its code runs from top to bottom with the shipped weights."""

import json
import pathlib

import numpy as np
import pytest

from maskgil_jax.checkpoints.weights import SHIPPED

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "colab_sampling.ipynb"
LEFT_OUT = {"install"} | (set() if (SHIPPED / "demo_ar").is_dir() else {"hybrid"})


def cells():
    """The code cells, as (source, tags)."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "clear the notebook's outputs before saving it"
            yield "".join(cell["source"]), set(cell["metadata"].get("tags", ()))


def test_only_the_installation_needs_a_notebook():
    for source, tags in cells():
        assert ("%pip" in source) == (tags == {"install"})
        if tags != {"install"}:
            compile(source, str(NOTEBOOK), "exec")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for source, tags in cells():
        if not tags & LEFT_OUT:
            exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert names["images"].shape == names["fast"].shape == names["real"].shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(names["steps"][-1], names["images"])
    np.testing.assert_array_equal(names["filled"][:, :, :28], names["real"][:, :, :28])
    assert (names["boxed"][:, 20:44, 20:44] != names["real"][:, 20:44, 20:44]).any()
    assert names["varied"].shape == (4, 64, 64, 3) and names["wide"].shape == (4, 64, 128, 3)
    np.testing.assert_array_equal(names["wide"][:, 8:56, 40:88], names["real"][:, 8:56, 8:56])
    assert (tmp_path / "trajectory.gif").exists()
    if "hybrid" not in LEFT_OUT:
        assert names["hybrid"].shape == (4, 64, 64, 3)

"""`maskgil export OUT.pt`: what torch reads back is what was there, bit for bit; without torch, one clear line."""

import sys

import numpy as np
import pytest
from helpers.gpt_weights import llama_config, published_tensors
from helpers.recipe import draw, load_case
from safetensors.numpy import save_file

from maskgil_jax import cli
from maskgil_jax.convert.families import FAMILIES
from maskgil_jax.convert.main import convert

CASES = {
    "maskgil": ("maskgil_gpt/tiny", {}, {}),
    "llamagen-c2i": (
        "llamagen_gpt/c2i_tiny",
        dict(grid=(8, 8), positions="2d", class_position="first", mask_logit=False, causal=True),
        {"grid": [8, 8]},
    ),
}


@pytest.fixture(params=CASES)
def published(request, tmp_path):
    """(family, state dict under PyTorch names, weights folder made of it)."""
    family, (case, layout, options) = request.param, CASES[request.param]
    config, _ = load_case(case)
    cfg = llama_config(config["hparams"], dropout=0.1, **layout)
    state = {name: draw(name, t.shape, config["recipe"]) for name, t in published_tensors(family, cfg).items()}
    save_file(state, tmp_path / "file.safetensors")
    convert(tmp_path / "file.safetensors", tmp_path / "w", options={"heads": cfg.heads, **options})
    return family, state, tmp_path / "w"


@pytest.mark.parametrize("name", ["back.pt", "back.pth", "back.ckpt"])
def test_torch_loads_exported_file_bit_for_bit(published, name, tmp_path):
    torch = pytest.importorskip("torch")
    family, state, folder = published
    assert cli.main(["export", str(folder), str(tmp_path / name), "--to", family]) == 0
    tree = torch.load(tmp_path / name, weights_only=True, map_location="cpu")
    assert list(tree) == [FAMILIES[family].container]
    back = tree[FAMILIES[family].container]
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == torch.float32 and back[key].is_contiguous()
        np.testing.assert_array_equal(back[key].numpy().view(np.int32), array.view(np.int32), err_msg=key, strict=True)


def test_read_equals_tensors_that_torch_saved(published, tmp_path):
    """torch.save -> convert -> export as safetensors: the same tensors, for both of torch's containers."""
    torch = pytest.importorskip("torch")
    from maskgil_jax.convert.readers.detect import read

    family, state, _ = published
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    for modern in (True, False):
        path = tmp_path / f"torch_{modern}.pt"
        torch.save({FAMILIES[family].container: tensors}, path, _use_new_zipfile_serialization=modern)
        checkpoint = read(path, verify=True)
        assert checkpoint.keys() == state.keys() and all(np.array_equal(checkpoint[n], state[n]) for n in state)


@pytest.mark.parametrize("published", ["maskgil"], indirect=True)
def test_export_pt_without_torch_is_refused_with_one_line(published, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    family, _, folder = published
    capsys.readouterr()
    assert cli.main(["export", str(folder), str(tmp_path / "back.pt"), "--to", family]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "needs torch; install maskgil-jax[torch] or write .safetensors" in error
    assert not list(tmp_path.glob("*back*"))
    assert cli.main(["export", str(folder), str(tmp_path / "back.safetensors"), "--to", family]) == 0

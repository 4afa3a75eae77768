"""Chameleon folders -> weights folders -> the same tensors.

Vocabularies that name the codes, and folders without one.
"""

import gzip
import json

import numpy as np
import pytest
from helpers.chameleon_files import CODES, GOLDEN, NAMES, golden, save_folder
from safetensors.numpy import load_file

from maskgil_jax.checkpoints.weights import load_weights, open_weights
from maskgil_jax.convert.main import convert, export
from maskgil_jax.convert.planner import make_plan
from maskgil_jax.convert.readers.checkpoint import BadWeightFile

GRID = {"grid": (4, 4)}


def with_groups(weights, groups):
    """The golden weights with a QK-Norm of other groups, as other versions of these files have them."""
    return {name: array[:groups] if "_norm." in name and "self_attn" in name else array for name, array in weights.items()}


@pytest.mark.parametrize("names_in", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convert_and_export_return_every_tensor_bit_for_bit(names_in, groups, tmp_path):
    weights = with_groups(golden()[0], groups)
    extra = {"model.vqmodel.encoder.conv_in.weight": np.ones((4, 3, 3, 3), np.float32)}
    done = convert(save_folder(tmp_path / "hf", weights | extra, names_in=names_in), tmp_path / "weights", options=GRID)
    assert done.plan.name == "chameleon" and list(done.plan.ignored) == list(extra)
    cfg = done.plan.cfg
    assert (cfg.image_ids, cfg.first_image_id, cfg.codebook_size, cfg.qk_norm_groups) == (CODES, 10, 4, groups)
    assert (cfg.end_image, cfg.begin_image, cfg.end_turn, cfg.newline, cfg.size_zero) == (20, 21, 22, 23, 24)
    assert (tmp_path / "weights" / "tokenizer.json").exists()
    assert load_weights(tmp_path / "weights").metadata["decode"] == {"guidance": 4.0, "top_k": 2000}
    back = export(tmp_path / "weights", "chameleon")
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name].view(np.uint32), array.view(np.uint32), name)


def test_bfloat16_files_are_written_in_bfloat16_without_loss(tmp_path):
    import ml_dtypes

    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in golden()[0].items()}
    convert(save_folder(tmp_path / "hf", weights), tmp_path / "weights", options=GRID, dtype="bfloat16")
    stored = load_file(tmp_path / "weights" / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    back = export(tmp_path / "weights", "chameleon")
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array.astype(np.float32), name)


def test_plan_uses_every_name_of_lumina_mgpt_7b_exactly_once():
    listing = json.loads(gzip.decompress((GOLDEN / "lumina_mgpt_7b.json.gz").read_bytes()))
    published = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": 4 + code for code in range(8192)}
    frames = {"<eoss>": 8196, "<racm3:break>": 8197, "<reserved08706>": 8710, "<reserved08799>": 8803, "<reserved08800>": 8804}
    sidecars = {"config.json": {"model_type": "chameleon", "vocabulary_map": published | frames}}
    for groups in (1, 32):  # Lumina-mGPT's files, and those of today's transformers
        found = {name: (tuple(shape), np.dtype("float32")) for name, shape in listing["tensors"].items()}
        found = {n: ((groups, 128), d) if n.split(".")[-2] in ("q_norm", "k_norm") else (s, d) for n, (s, d) in found.items()}
        plan, problems = make_plan(found, sidecars=sidecars)
        assert problems == [] and plan.name == "chameleon" and plan.needed.keys() == found.keys() and not plan.ignored
        cfg = plan.cfg
        assert (cfg.width, cfg.depth, cfg.heads, cfg.mlp_width, cfg.vocabulary) == (4096, 32, 32, 11008, 65536)
        assert (cfg.kv_heads, cfg.image_ids, cfg.codebook_size, cfg.qk_norm_groups) == (None, (), 8192, groups)
        assert plan.parameters == listing["n_parameters"] - (32 - groups) * 128 * 4 * 32


def test_convert_refuses_folders_that_do_not_name_the_codes(tmp_path):
    weights = golden()[0]
    folder = save_folder(tmp_path / "none", weights, names_in="nothing")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadWeightFile, match=r"image_ids: the weights do not say which token .* tokenizer\.json, beside them"):
        convert(folder, tmp_path / "out")
    for name, change in {"gap": {"IMGIMGBZ": None}, "newline": {"<reserved08799>": None}}.items():
        names = {key: value for key, value in NAMES.items() if key not in change}
        folder = save_folder(tmp_path / name, weights, config={"vocabulary_map": names}, names_in="nothing")
        with pytest.raises(BadWeightFile, match=r"its vocabulary (names 3 codes|has no <reserved08799>)"):
            convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_convert_takes_options_from_config_json(tmp_path):
    config = {"swin_norm": True, "rope_theta": 5000.0, "rms_norm_eps": 1e-6}
    folder = save_folder(tmp_path / "hf", golden()[0], config=config)
    convert(folder, tmp_path / "out", options=GRID)
    cfg, _, _ = open_weights(tmp_path / "out")
    assert (cfg.swin_norm, cfg.rope_base, cfg.norm_eps) == (True, 5000.0, 1e-6)

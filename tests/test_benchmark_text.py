"""`benchmarks.text`: folders that every encoder reads, and tables of the work beside the times."""

import json
import types

import jax
import numpy as np
import pytest

from benchmarks import text
from maskgil_jax.config import LLAMA_PRESETS, LlamaConfig
from maskgil_jax.text_encoders import load_text_encoder

SIZES = {  # of a published configuration -> of a small one, for both ways to name them
    **dict(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
    **dict(d_model=32, d_ff=48, d_kv=16, num_heads=2, num_layers=2, head_dim=16, num_key_value_heads=1, eos_token_id=199),
}


def small(name):
    return {key: SIZES.get(key, value) for key, value in text.CONFIGS[name].items()}


@pytest.fixture
def args():
    return types.SimpleNamespace(rows=3, tokens=12, repeats=1, torch_python=None, preset="tiny", images=1)


@pytest.mark.parametrize("name", text.CONFIGS)
def test_written_folder_is_read_and_gives_finite_states(name, tmp_path):
    size = text.write_folder(tmp_path, small(name))
    encoder = load_text_encoder(tmp_path, max_tokens=12)
    assert size == 4 * sum(leaf.size for leaf in jax.tree.leaves(encoder.params))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == text.CONFIGS[name]["model_type"]
    states = encoder.states(np.arange(24).reshape(2, 12) + 1, np.ones((2, 12), bool))
    assert np.isfinite(states).all() and np.std(states) > 0.01


def test_encoder_rows_give_captions_a_second(args, monkeypatch):
    monkeypatch.setitem(text.CONFIGS, "minilm", small("minilm"))
    monkeypatch.setattr(
        text, "inputs_of", lambda values, rows, tokens: (np.ones((rows, tokens), np.int32), np.ones((rows, tokens)))
    )
    (row,) = text.encoder_rows("minilm", args)
    assert row["form"] == "maskgil_jax" and row["captions/s"] == pytest.approx(3 / row["seconds"], rel=1e-2)


@pytest.mark.slow
def test_decode_rows_count_the_work_of_a_text(args, monkeypatch):
    tiny = LlamaConfig(codebook_size=16, num_classes=3, grid=(4, 4), width=32, depth=1, heads=2, mlp_width=32)
    monkeypatch.setitem(LLAMA_PRESETS, "tiny", tiny)
    rows = text.decode_rows(args)
    assert [row["condition"] for row in rows] == ["class", "text"]
    assert rows[0]["GFLOP, times class"] == 1 and rows[1]["GFLOP, times class"] > 4  # 144 positions instead of 17

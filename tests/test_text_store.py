"""The text store, and training on it: round trip, interruption, damage, exact resumption."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers.text_folders import with_tokenizer
from helpers.tiny_pipeline import VQ
from helpers.tiny_text_pipeline import TOKENS, WIDTH
from test_causal_training import CONFIGS

from maskgil_jax.checkpoints.weights import load_weights, save_weights
from maskgil_jax.commands.run_files import read_run_file
from maskgil_jax.conditioning import stored_texts
from maskgil_jax.config import ConfigError, LlamaConfig, LoaderConfig
from maskgil_jax.data.code_store import CodeStore, code_batches, encode_dataset
from maskgil_jax.data.text_store import TextStore, caption_ids, write_text_store
from maskgil_jax.networks import create, params_of
from maskgil_jax.pipelines.encoding import encode_texts
from maskgil_jax.pipelines.pipeline import load
from maskgil_jax.text_encoders import load_text_encoder
from maskgil_jax.training.generator import train

WORDS = ("red cat", "two green dog on the hat", "blue sun under the cat", "a hat")
TEXTS = {
    name: f"{WORDS[i % 4]} {'left of the sun' * k}" for i in range(8) for k, name in enumerate(caption_ids(f"ü/{i}.png", 2))
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_text_encoder(with_tokenizer("t5", tmp_path_factory.mktemp("encoder")), max_tokens=TOKENS)


@pytest.fixture(scope="module")
def store(encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("texts") / "store"
    return TextStore(write_text_store(TEXTS, out, encoder, about=encoder.about, shard_size=5))


def test_text_store_returns_the_encoders_features_in_bfloat16(store, encoder):
    assert len(store) == 17 and store.ids[0] == "" and store.captions_of("ü/3.png") == ["ü/3.png#0", "ü/3.png#1"]
    features, mask = store.batch(["ü/1.png#0", "", "ü/6.png#1"])
    expected = encoder([TEXTS["ü/1.png#0"], "", TEXTS["ü/6.png#1"]])
    assert features.dtype == ml_dtypes.bfloat16 and features.shape == (3, TOKENS, WIDTH)
    np.testing.assert_array_equal(mask, expected.mask_bt)
    np.testing.assert_allclose(features.astype(np.float32), expected.features_btd, atol=2e-2)
    assert store.about == encoder.about and "ü/1.png#0" in store and "other" not in store


def test_text_store_holds_real_tokens_only(store, encoder):
    tokens = int(np.asarray(encoder(["", *TEXTS.values()]).mask_bt).sum())
    content = tokens * WIDTH * 2 + sum(4 + len(name.encode()) for name in store.ids)
    size = sum(file.stat().st_size for file in store.path.glob("*.array_record"))
    whole = len(store) * TOKENS * WIDTH * 2
    assert content < size  # ArrayRecord pads its files to blocks of 64 KiB
    records = sum(len(store._records[i]) for i in range(len(store)))
    assert records == content < 0.8 * whole


def test_left_padded_features_come_back_on_the_right(tmp_path, encoder):
    left = load_text_encoder(encoder.folder, max_tokens=TOKENS, padding="left")
    found = TextStore(write_text_store(TEXTS, tmp_path / "s", left, about=left.about)).batch(["ü/0.png#0"])
    np.testing.assert_array_equal(found[1], left([TEXTS["ü/0.png#0"]]).mask_bt)
    assert found[1][0, -1] and not found[1][0, 0]


def test_encode_texts_warns_once_of_all_captions_that_are_cut(encoder, tmp_path, caplog):
    long = "red cat " * TOKENS
    source = [{"id": f"{i}.png", "captions": (f"{WORDS[i]} {long}", long, "a hat")} for i in range(4)]
    assert encode_texts(source, tmp_path / "s", encoder, batch_size=2)[1:] == (12, 6)
    (record,) = caplog.records
    expected = f"5 of 6 captions are longer than max_tokens={TOKENS} and are cut; the first of them: red cat red cat"
    assert record.getMessage().startswith(expected)


def test_call_names_three_texts_that_are_cut_and_counts_the_rest(encoder, caplog):
    encoder(["a hat", *["red cat " * TOKENS] * 5])
    assert [record.getMessage().split(" is ")[0] for record in caplog.records[:3]] == ["text 1", "text 2", "text 3"]
    assert [record.getMessage() for record in caplog.records[3:]] == [f"2 more texts were cut to max_tokens={TOKENS}"]


def test_interrupted_text_store_continues_to_the_same_bytes(store, encoder, tmp_path):
    calls = []

    def dies(texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoder(texts)

    options = dict(about=encoder.about, shard_size=5)
    with pytest.raises(KeyboardInterrupt):
        write_text_store(TEXTS, tmp_path / "s", dies, **options)
    with pytest.raises(ConfigError, match="not a finished text store"):
        TextStore(tmp_path / "s")
    calls[:] = [0, 0]
    write_text_store(TEXTS, tmp_path / "s", dies, **options)
    assert calls[2:] == [4]  # one of four shards was there, and the texts of the last two occur in the first two
    names = sorted(path.name for path in store.path.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "s").iterdir()) and "progress.json" not in names
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (store.path / name).read_bytes()
    write_text_store(TEXTS, tmp_path / "s", dies, **options)
    assert len(calls) == 3  # a finished store is left as it is


def test_equal_texts_are_encoded_once_also_after_an_interruption(encoder, tmp_path):
    texts = {f"{i}#0": ("red cat", "a hat", f"cat {i}")[i % 3] for i in range(12)}
    seen, left = [], [100]

    def counting(some):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        seen.extend(some)
        return encoder(some)

    options = dict(about=encoder.about, shard_size=4)
    whole = TextStore(write_text_store(texts, tmp_path / "a", counting, **options))
    assert sorted(seen) == sorted({"", *texts.values()}) and len(whole) == 13
    seen.clear()
    left[0] = 2
    with pytest.raises(KeyboardInterrupt):
        write_text_store(texts, tmp_path / "b", counting, **options)
    left[0] = 100
    write_text_store(texts, tmp_path / "b", counting, **options)
    assert sorted(seen) == sorted({"", *texts.values()})
    for file in whole.path.iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    np.testing.assert_array_equal(whole["0#0"][0], whole["9#0"][0])
    np.testing.assert_allclose(whole["9#0"][0].astype(np.float32), encoder(["red cat"]).features_btd[0], atol=2e-2)


def test_text_store_refuses_other_contents_and_damage(store, encoder, tmp_path):
    copy = shutil.copytree(store.path, tmp_path / "s")
    options = dict(about=encoder.about, shard_size=5)
    with pytest.raises(ConfigError, match="holds a store with another 'texts'"):
        write_text_store({"a#0": "cat"}, copy, encoder, **options)
    with pytest.raises(ConfigError, match="holds a store with another 'encoder'"):
        write_text_store(TEXTS, copy, encoder, about={**encoder.about, "hash": "0"}, shard_size=5)
    with pytest.raises(ConfigError, match="texts: none given"):
        write_text_store({}, copy, encoder, **options)
    with pytest.raises(ConfigError, match="'a#0' is given twice"):
        write_text_store([("a#0", "cat"), ("a#0", "dog")], tmp_path / "t", encoder, **options)
    with pytest.raises(ConfigError, match="holds no caption 'a#0'"):
        store["a#0"]
    with pytest.raises(ConfigError, match=r"holds no caption of image 'b.png'"):
        store.captions_of("b.png")
    shard = copy / "codes-00001.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"codes-00001.array_record: \d+ bytes, expected"):
        TextStore(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json: not a JSON file"):
        TextStore(copy)


class Pictures:
    """Eight images of two halves, whose colour the first word of a caption tells."""

    name, class_names = "pictures", ("one",)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        image = np.full((16, 16, 3), (i % 4) * 60, np.uint8)
        return {"image": image, "label": 0, "id": f"ü/{i}.png"}


def codes_of(images_bhwc):
    """Codes that the grey level tells: (b, 16, 16, 3) -> (b, 4, 4)."""
    return np.asarray(images_bhwc)[:, ::4, ::4, 0].astype(np.int32) // 16


@pytest.fixture(scope="module")
def run(tmp_path_factory, store):
    """(folder with tokenizer and code store, function changes -> run file)."""
    folder = tmp_path_factory.mktemp("run")
    save_weights(folder / "tokenizer", VQ, params_of(create(VQ, jax.random.key(0))))
    encode_dataset(
        codes_of,
        Pictures(),
        folder / "codes",
        tokenizer_hash=load_weights(folder, "tokenizer").hash,
        grid=(4, 4),
        codebook_size=VQ.codebook_size,
        size=16,
        batch_size=8,
        progress=False,
    )

    def run_file(**changes):
        flags = [f"--config.tokenizer={folder / 'tokenizer'}", f"--config.data.codes={folder / 'codes'}"]
        flags += ["--config.data.image_size=16", "--config.batch_size=8", "--config.log_every=1", "--config.sample_count=8"]
        flags += ["--config.model.width=32", "--config.model.heads=2", "--config.model.mlp_width=32", "--config.model.depth=1"]
        flags += ["--config.checkpoint.every=2", "--config.checkpoint.keep=9", "--config.optimizer.learning_rate=0.01"]
        flags += ["--config.optimizer.warmup_steps=0"]
        config = read_run_file(
            str(CONFIGS / "emoji.py"), flags + [f"--config.{name}={value}" for name, value in changes.items()]
        )
        with config.unlocked():
            config.data.texts = str(store.path)
        return config

    return folder, run_file


def test_batches_hold_a_caption_of_each_image_by_position(run, store):
    codes = CodeStore(run[0] / "codes")
    options = LoaderConfig(batch_size=4, seed=3)
    stream = code_batches(codes, options, texts=store)
    seen = [next(stream) for _ in range(12)]
    for batch in seen:
        assert batch["text_features"].shape == (4, TOKENS, WIDTH) and batch["text_mask"].dtype == bool
        for row, index in enumerate(batch["index"]):
            own = [store[name][0].tobytes() for name in store.captions_of(f"ü/{index}.png")]
            assert batch["text_features"][row].tobytes() in own
    used = {(int(i), f.tobytes()) for batch in seen for i, f in zip(batch["index"], batch["text_features"])}
    assert len(used) > 8  # more than one caption an image
    later = next(code_batches(codes, options, texts=store, start_step=11))
    np.testing.assert_array_equal(later["text_mask"], seen[11]["text_mask"])
    assert later["text_features"].tobytes() == seen[11]["text_features"].tobytes()


def test_conditioner_of_stored_texts_knows_the_null_text(store, encoder):
    conditioner = stored_texts(store)
    cfg = LlamaConfig(condition="text", text_tokens=TOKENS, text_dim=WIDTH, null_text="encoder")
    fixed = conditioner.fixed_parameters(cfg)
    np.testing.assert_allclose(fixed["caption_null"], encoder([""]).features_btd[0], atol=2e-2)
    np.testing.assert_array_equal(fixed["caption_null_mask"], encoder([""]).mask_bt[0])
    assert conditioner.metadata()["text_encoder"] == {**encoder.about, "texts": store.texts}
    shown = conditioner.examples(20)
    np.testing.assert_array_equal(shown.mask_bt[16], shown.mask_bt[0])
    np.testing.assert_array_equal(shown.mask_bt[0], store["ü/0.png#0"][1])


@pytest.mark.slow
def test_text_training_learns_and_resumes_exactly(run, store, encoder, tmp_path):
    _, run_file = run
    config = run_file(total_steps=30, sample_every=30)
    hashes, lines = [], []
    for name in ("whole", "parts"):
        if name == "parts":  # as a run that was stopped after step 20, at a checkpoint
            later = {"weights", "images", *map(str, range(21, 31))}
            shutil.copytree(tmp_path / "whole", tmp_path / "parts", ignore=lambda *_, later=later: later)
        weights = train(config, tmp_path / name)
        hashes.append(load_weights(weights, "generator").hash)
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        lines.append({row["step"]: row["masked_loss"] for row in rows})
    assert hashes[0] == hashes[1] and lines[0] == lines[1] and sorted(lines[0]) == list(range(1, 31))
    early, late = (np.mean([lines[0][step] for step in steps]) for steps in (range(1, 4), range(28, 31)))
    assert late < 0.7 * early
    found = load_weights(weights, "generator")
    assert (found.cfg.text_tokens, found.cfg.prefix_rotation, found.cfg.null_text) == (TOKENS, "identity", "encoder")
    null, mask = store.batch([""])
    np.testing.assert_array_equal(found.params["caption_null"], null[0].astype(np.float32))
    np.testing.assert_array_equal(found.params["caption_null_mask"], mask[0])
    pipeline = load(weights)
    assert pipeline(prompts=["red cat"], negative_prompts="a hat").shape == (1, 16, 16, 3)


def test_texts_without_codes_are_refused(run, tmp_path):
    config = run[1](total_steps=2)
    config.data.codes = ""
    with pytest.raises(ConfigError, match=r"config\.data\.texts: needs config\.data\.codes"):
        train(config, tmp_path / "w")

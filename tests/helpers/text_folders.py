"""Folders of tiny text encoders: the golden ones, changed copies of them, and one with a tokenizer of a few words."""

import json
import pathlib
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "text"
KINDS = ("gemma", "gemma2", "t5", "bert")
RTOL = 1e-5  # of the largest value: what two float32 programs of the same network differ by
WORDS = ("[PAD]", "</s>", "<s>", "?", *"a red green blue cat dog sun hat on over under left right of the two three".split())


def reference(kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / kind / "io.npz") as file:
        return dict(file)


def assert_near(found, expected, mask=None, rtol=RTOL):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == np.float32
    if mask is not None:
        found, expected = found[mask.astype(bool)], expected[mask.astype(bool)]
    assert np.abs(found - expected).max() <= rtol * np.abs(expected).max()


def copied(kind: str, folder: pathlib.Path, change_config=None) -> pathlib.Path:
    folder = folder / kind
    shutil.copytree(GOLDEN / kind, folder)
    if change_config:
        config = json.loads((folder / "config.json").read_text())
        change_config(config)
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewrite(folder: pathlib.Path, change) -> pathlib.Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def in_shards(folder: pathlib.Path) -> pathlib.Path:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def with_tokenizer(kind: str, tmp_path: pathlib.Path, end: bool = True) -> pathlib.Path:
    """A fixture's folder with a tokenizer of a few words, which puts <s> first and, if `end`, </s> last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = copied(kind, tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    tokenizer.enable_padding(length=7)  # some files bring settings of their own, which do not count
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}))
    return folder

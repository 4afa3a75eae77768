"""Tiny Chameleon folders in Hugging Face's layout: the golden network,
and a vocabulary with a tokenizer of a few words."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "text" / "chameleon"
CODES = (12, 10, 13, 11)  # ids of the golden network's four codes, in an order of its own
NAMES = {
    **{f"IMGIMG{'ABCD'[code]}Z": token for code, token in enumerate(CODES)},
    "<eoss>": 20,
    "<racm3:break>": 21,
    "<reserved08706>": 22,
    "<reserved08799>": 23,
    "<reserved08800>": 24,
}
WORDS = {word: 40 + i for i, word in enumerate("? Generate an image of according to the following prompt: red cat".split())}
SIZES = {f"{side}x{side}": 52 + i for i, side in enumerate((64, 128))}


def golden() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(weights by name, inputs and outputs) of the golden network."""
    with np.load(GOLDEN / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    weights = {name.removeprefix("w/"): array for name, array in arrays.items() if name.startswith("w/")}
    return weights, {name: array for name, array in arrays.items() if not name.startswith("w/")}


def save_folder(folder: pathlib.Path, weights: dict[str, np.ndarray], *, names_in="config.json", config=None) -> pathlib.Path:
    """Writes the weights as two shards, with the vocabulary in `config.json` or in `tokenizer.json`."""
    folder.mkdir(parents=True)
    about = {"model_type": "chameleon", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "swin_norm": False, **(config or {})}
    if names_in == "config.json":
        about["vocabulary_map"] = NAMES
    (folder / "config.json").write_text(json.dumps(about))
    shards = {name: f"model-{1 + (i >= len(weights) // 2):05}-of-00002.safetensors" for i, name in enumerate(weights)}
    for shard in sorted(set(shards.values())):
        save_file({name: np.ascontiguousarray(weights[name]) for name in weights if shards[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: pathlib.Path, names: dict[str, int] = NAMES) -> None:
    """A tokenizer of whole words that puts <s> (0) first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, **names, **WORDS, **SIZES}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
